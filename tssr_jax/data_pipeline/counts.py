"""What evaluation counts: popularity of items, answers of the day of the item before."""

from __future__ import annotations

import ml_collections
import numpy as np

from tssr_jax.data_pipeline.gate_rows import had_before, trained_lengths
from tssr_jax.data_pipeline.splits import MINUTES_PER_DAY, EvalSplit
from tssr_jax.data_pipeline.store import SequenceStore, users_in_chunks
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.data_pipeline.windows import held_out_items, without_items


def training_counts(
    store: SequenceStore, config: ml_collections.ConfigDict, num_items: int
) -> np.ndarray:
    """How often training windows contain each item, int64 [num_classes]; 0 for padding.

    Windows of a user overlap; each position of a sequence that is in any window counts once.
    """
    ends = trained_lengths(store, config)
    longest = int(ends.max())
    if config.train.windows == "last":
        longest = min(longest, config.model.max_length + 1)
    counts = np.zeros(num_items + 1, np.int64)
    held_out = held_out_items(config, num_items)
    for users in users_in_chunks(np.flatnonzero(ends >= 2), longest):
        windows = store.rows(users).windows(tf.constant(ends[users.numpy()]), longest)
        if held_out is not None:
            (windows,) = without_items(held_out, windows)
        counts += np.bincount(windows.numpy().reshape(-1), minlength=num_items + 1)
    counts[0] = 0
    return counts


def history_mean(store: SequenceStore, values: np.ndarray, split: EvalSplit) -> float:
    """Mean over a split's answers of the mean value of the user's items before it.

    Args:
      store: the sequences.
      values: [num_classes], the value of each item.
      split: the split whose answers end the histories.
    """
    users, ends = store.splits.targets[split]
    padded = np.concatenate([[0], values[1:]])
    longest = int(ends.max())
    total = 0.0
    for some in users_in_chunks(np.arange(ends.size), longest):
        own = ends[some.numpy()]
        rows = store.rows(tf.constant(users[some.numpy()]))
        windows = rows.windows(tf.constant(own), longest).numpy()
        total += float((padded[windows].sum(axis=1) / own).sum())
    return total / ends.size


def same_day(store: SequenceStore, split: EvalSplit) -> np.ndarray:
    """Whether a split's answers are of the day (UTC) of the item before them, bool [rows]."""
    users, ends = store.splits.targets[split]
    found = []
    for some in users_in_chunks(np.arange(ends.size), 2):
        rows = store.rows(tf.constant(users[some.numpy()]))
        last_two = rows.times(tf.constant(ends[some.numpy()] + 1), 2).numpy()
        before, answer = (last_two // MINUTES_PER_DAY).T
        found.append(before == answer)
    return np.concatenate(found)


def repeated_share(store: SequenceStore) -> float:
    """Share of the answers of both splits that their users had before."""
    found = [had_before(store, targets) for targets in store.splits.targets.values()]
    return float(np.concatenate(found).mean())
