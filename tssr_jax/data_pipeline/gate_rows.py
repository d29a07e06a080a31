"""Histories that the gate of a model with memories learns from.

The gate weighs what the network learnt against what was counted. On a history whose next item the
network was trained on, the network would look better than it is. So some users lend their newest
training item: no window has it, and the gate learns to predict it.
"""

from __future__ import annotations

from typing import NamedTuple

import ml_collections
import numpy as np

from tssr_jax.data_pipeline.splits import Targets
from tssr_jax.data_pipeline.store import EVENT, ITEMS, MINUTES, SequenceStore
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.data_pipeline.windows import held_out_items, without_items

# The share of all training interactions that are lent. Fewer teach a gate of small data too little.
_ONE_IN = 64
# The gate has two dozen parameters: more users would teach it nothing.
_MOST = 20_000
# Two items remain for a training window.
_LEAST_TRAINED = 3
# Set apart from other draws that are keyed by the seed.
_STREAM = 7
_USERS_AT_A_TIME = 1_024


class GateRows(NamedTuple):
    """Users whose newest training item the gate learns to predict, in a random order.

    Attributes:
      users: int64 [rows].
      items: int32 [rows, L], the histories before it, padded on the left with 0.
      times: int32 [rows, L], minutes since 1970, 0 on padding.
      labels: int32 [rows], the items.
      events: int32 [rows, L], 0 on padding; None if the data has none.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    labels: np.ndarray
    events: np.ndarray | None = None


def trained_lengths(store: SequenceStore, config: ml_collections.ConfigDict) -> np.ndarray:
    """How many items of each user training windows may have, int64 [num_users].

    Args:
      store: the sequences.
      config: of the run.
    """
    trained = store.splits.trained.copy()
    if tuple(config.model.memory) and not config.baseline.kind:
        trained[_gate_users(store, config.seed)] -= 1
    return trained


def _gate_users(store: SequenceStore, seed: int) -> np.ndarray:
    """The users who lend an item, one that is predicted, int64, in a random order."""
    trained = store.splits.trained
    users = np.flatnonzero(trained >= _LEAST_TRAINED)
    users = users[store.are_predicted(Targets(users, trained[users] - 1))]
    order = np.random.default_rng([seed % 2**32, _STREAM]).permutation(users)
    return order[: min(-(-int(trained.sum()) // _ONE_IN), _MOST)]


def gate_rows(store: SequenceStore, config: ml_collections.ConfigDict, num_items: int) -> GateRows:
    """The histories, without items that training does not see (`train.held_out_items`).

    Items that their user had before are no labels: the user's own interactions can't be told apart
    there.

    Args:
      store: the sequences.
      config: of the run.
      num_items: size of the catalogue.
    """
    users = _gate_users(store, config.seed)
    users = users[~had_before(store, users)]
    rows = store.rows(tf.constant(users))
    window = tf.constant(store.splits.trained[users]), config.model.max_length + 1
    names = [ITEMS, MINUTES, *([EVENT] if store.has_events else [])]
    columns = [rows.last(name, *window) for name in names]
    held_out = held_out_items(config, num_items)
    if held_out is not None:
        there = ~held_out[columns[0][:, -1].numpy()]
        columns = without_items(held_out, *columns)
        there &= np.count_nonzero(columns[0], axis=1) > 1
        users, columns = users[there], [values[there] for values in columns]
    items, times, *more = (np.asarray(values) for values in columns)
    events = more[0][:, :-1] if more else None
    return GateRows(users, items[:, :-1], times[:, :-1], items[:, -1], events)


def had_before(store: SequenceStore, users: np.ndarray) -> np.ndarray:
    """Whether the newest training item of each of these users occurs before, bool [users]."""
    if not users.size:
        return np.zeros(0, bool)
    ends = store.splits.trained[users]
    longest, found = int(ends.max()), []
    for start in range(0, users.size, _USERS_AT_A_TIME):
        some = slice(start, start + _USERS_AT_A_TIME)
        rows = store.rows(tf.constant(users[some]))
        items = rows.windows(tf.constant(ends[some]), longest).numpy()
        found.append((items[:, :-1] == items[:, -1:]).any(axis=1))
    return np.concatenate(found)
