"""Histories that the gate of a model with memories learns from.

The gate weighs what the network learnt against what was counted. On a history whose next item the
network was trained on, the network would look better than it is. So some users lend an item: no
window has it, nor what the user took later, and the gate learns to predict it. It is of the kind
that evaluation asks for:

    leave-one-out                     the user's newest training item
    split by time, targets "first"    the first item of the user's newest day: the user comes back
    other targets                     the user's newest training item

On MovieLens-1M 94% of the newest items are of the day of the item before them. A gate that learns
from these trusts the newest items too much where a user comes back (docs/results/time_split.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import ml_collections
import numpy as np

from tssr_jax.data_pipeline.splits import Targets
from tssr_jax.data_pipeline.store import ITEMS, MINUTES, SequenceStore
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.data_pipeline.windows import held_out_items, without_items

# The share of all training interactions that windows miss. Fewer teach a gate of small data too
# little.
_ONE_IN = 64
# The gate has some thirty parameters: more users would teach it nothing.
_MOST = 20_000
# Two items remain for a training window.
_LEAST_TRAINED = 3
# Fewer users that come back teach less than all users' newest items do.
_LEAST_BACK = 64
# Set apart from other draws that are keyed by the seed.
_STREAM = 7


class GateRows(NamedTuple):
    """Users, and the item of each that the gate learns to predict, in a random order.

    Attributes:
      users: int64 [rows].
      items: int32 [rows, L], the histories before it, padded on the left with 0.
      times: int32 [rows, L], minutes since 1970, 0 on padding.
      labels: int32 [rows], the items.
      asked: int32 [rows], when they are asked for: in a split by time, when they were taken; in
        leave-one-out the time of the history's newest item, as evaluation does.
      before: int64 [rows], how often the users had them before.
      side: `SequenceStore.side` of the histories' items, int32 [rows, L], 0 on padding.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    labels: np.ndarray
    asked: np.ndarray
    before: np.ndarray
    side: dict[str, np.ndarray]


def trained_lengths(store: SequenceStore, config: ml_collections.ConfigDict) -> np.ndarray:
    """How many items of each user training windows may have, int64 [num_users].

    Args:
      store: the sequences.
      config: of the run.
    """
    trained = store.splits.trained.copy()
    if tuple(config.model.memory) and not config.baseline.kind:
        lent = _lent(store, config)
        trained[lent.users] = lent.ends
    return trained


def _lent(store: SequenceStore, config: ml_collections.ConfigDict) -> Targets:
    """The items that windows leave to the gate, of users in a random order; chosen once."""
    evaluate = config.evaluate
    key = config.seed, evaluate.keep_seen, evaluate.split, evaluate.targets
    if key not in store.lent:
        store.lent[key] = _choose(store, config)
    return store.lent[key]


def _choose(store: SequenceStore, config: ml_collections.ConfigDict) -> Targets:
    """The items that windows leave to the gate.

    A user lends an item that is predicted. If seen items are not recommended, it must be new to the
    user. If no user has such an item (all that was bought was viewed before), the newest item of
    any event is lent, if it is new. Users of whom windows miss the fewest items lend first.
    """
    for places, least in _places(store, config):
        users = np.flatnonzero(places >= _LEAST_TRAINED - 1)
        if not config.evaluate.keep_seen:
            users = users[~had_before(store, Targets(users, places[users]))]
        if users.size >= least:
            break
    users = np.random.default_rng([config.seed % 2**32, _STREAM]).permutation(users)
    trained = store.splits.trained
    missed = trained[users] - places[users]
    fewest = np.argsort(missed, kind="stable")
    within = np.cumsum(missed[fewest]) <= -(-int(trained.sum()) // _ONE_IN)
    chosen = users[np.sort(fewest[: min(max(int(within.sum()), 1), _MOST)])]
    return Targets(chosen, places[chosen])


def _places(
    store: SequenceStore, config: ml_collections.ConfigDict
) -> Iterator[tuple[np.ndarray, int]]:
    """Rules for what users lend, the best one first.

    Yields:
      int64 [num_users], the place of the item that each user may lend, -1 for none; and how many
      users must have one, or else the next rule is taken.
    """
    evaluate = config.evaluate
    if evaluate.split == "global_time" and evaluate.targets == "first":
        yield store.first_of_newest_day, _LEAST_BACK
    yield store.newest_predicted, 1
    yield store.splits.trained - 1, 0


def gate_rows(store: SequenceStore, config: ml_collections.ConfigDict, num_items: int) -> GateRows:
    """The histories, without items that training does not see (`train.held_out_items`).

    Items that their user had before are labels if they may be recommended (`evaluate.keep_seen`).

    Args:
      store: the sequences.
      config: of the run.
      num_items: size of the catalogue.
    """
    users, ends = _lent(store, config)
    before = times_before(store, Targets(users, ends))
    rows = store.rows(tf.constant(users))
    window = tf.constant(ends + 1), config.model.max_length + 1
    names = [ITEMS, MINUTES, *store.side.values()]
    columns = [rows.last(name, *window) for name in names]
    held_out = held_out_items(config, num_items)
    if held_out is not None:
        there = ~held_out[columns[0][:, -1].numpy()]
        columns = without_items(held_out, *columns)
        there &= np.count_nonzero(columns[0], axis=1) > 1
        users, before = users[there], before[there]
        columns = [values[there] for values in columns]
    items, times, *more = (np.asarray(values) for values in columns)
    side = {name: values[:, :-1] for name, values in zip(store.side, more, strict=True)}
    asked = times[:, -1 if config.evaluate.split == "global_time" else -2]
    return GateRows(users, items[:, :-1], times[:, :-1], items[:, -1], asked, before, side)


def least_length(store: SequenceStore, config: ml_collections.ConfigDict) -> np.ndarray:
    """The length, int32, that 95% of the histories of the gate have at least; 1 if there are none.

    Longer ones than `model.max_length` count as so long.
    """
    lengths = np.minimum(_lent(store, config).ends, config.model.max_length)
    return np.array(np.quantile(lengths, 0.05) if lengths.size else 1, np.int32)


def had_before(store: SequenceStore, targets: Targets) -> np.ndarray:
    """Whether these items occur before in the sequences of their users, bool [rows]."""
    return times_before(store, targets) > 0


def times_before(store: SequenceStore, targets: Targets) -> np.ndarray:
    """How often these items occur before in the sequences of their users, int64 [rows]."""
    found = np.zeros(targets.users.size, np.int64)
    for some, rows in store.chunks(targets.users):
        ends = targets.ends[some] + 1
        items = rows.windows(tf.constant(ends), int(ends.max())).numpy()
        found[some] = (items[:, :-1] == items[:, -1:]).sum(axis=1)
    return found
