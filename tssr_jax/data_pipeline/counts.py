"""Counts for evaluation: how often training saw items; which answers share a day with the last."""

from __future__ import annotations

import ml_collections
import numpy as np

from tssr_jax.data_pipeline.gate_rows import had_before, trained_lengths
from tssr_jax.data_pipeline.splits import MINUTES_PER_DAY, EvalSplit
from tssr_jax.data_pipeline.store import SequenceStore
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.data_pipeline.windows import held_out_items, without_items


def training_counts(
    store: SequenceStore, config: ml_collections.ConfigDict, num_items: int
) -> np.ndarray:
    """How often training windows contain each item, int64 [num_classes]; 0 for padding.

    Windows of a user overlap; each position of a sequence that is in any window counts once.
    """
    ends = trained_lengths(store, config)
    users = np.flatnonzero(ends >= 2)
    most = config.model.max_length + 1 if config.train.windows == "last" else ends.max(initial=1)
    counts = np.zeros(num_items + 1, np.int64)
    held_out = held_out_items(config, num_items)
    for some, rows in store.chunks(users):
        read = ends[users[some]]
        windows = rows.windows(tf.constant(read), int(min(read.max(), most)))
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
    total = 0.0
    for some, rows in store.chunks(users):
        windows = rows.windows(tf.constant(ends[some]), int(ends[some].max())).numpy()
        total += float((padded[windows].sum(axis=1) / ends[some]).sum())
    return total / ends.size


def same_day(store: SequenceStore, split: EvalSplit) -> np.ndarray:
    """Whether a split's answers are of the day (UTC) of the item before them, bool [rows]."""
    users, ends = store.splits.targets[split]
    found = np.zeros(ends.size, bool)
    for some, rows in store.chunks(users):
        last_two = rows.times(tf.constant(ends[some] + 1), 2).numpy()
        before, answer = (last_two // MINUTES_PER_DAY).T
        found[some] = before == answer
    return found


def repeated_share(store: SequenceStore) -> float:
    """Share of the answers of both splits that their users had before."""
    found = [had_before(store, targets) for targets in store.splits.targets.values()]
    return float(np.concatenate(found).mean())
