"""Scores of a user's next item by co-occurrence, as if the user were not in the training data.

A memory counts training interactions. If the item that a gate learns to predict is one of them, the
user's own pairs point at it. Here they are taken out again: from `c_ij` the weight of the user's
pair, and from `n_i` and `n_j` the user. An item counts at its first time. If the user had it
before, the next item itself is not counted, and nothing is taken out.
"""

from typing import NamedTuple

import numpy as np

from tssr_jax.memory.co_occurrence import Counting, Events
from tssr_jax.memory.scores import Neighbours

_NEIGHBOURS_AT_A_TIME = 2**24
# Rounding: two equal float32 sums differ by at most this fraction.
_ROUNDING = 1e-5


class Histories(NamedTuple):
    """Users' histories and their next items.

    Attributes:
      users: int [rows].
      items: int [rows, length], 0 is padding.
      weights: float [rows, length], of the items, see `memory.scores`.
      labels: int [rows], the next items.
      before: int [rows], how often the users had them before.
    """

    users: np.ndarray
    items: np.ndarray
    weights: np.ndarray
    labels: np.ndarray
    before: np.ndarray


def scores_without_own(
    table: Neighbours, events: Events, histories: Histories, counting: Counting
) -> np.ndarray:
    """Scores of the users' next items by co-occurrence without the users' own interactions.

    A next item that is not among the neighbours that are kept has no score.

    Args:
      table: neighbours by co-occurrence in `events`.
      events: the training interactions, the next items included.
      histories: the histories.
      counting: how the pairs of `table` were counted.

    Returns:
      float32 [rows].
    """
    counts = np.bincount(events.items, minlength=len(table.classes))
    scores = np.zeros(len(histories.users), np.float32)
    a_row = histories.items.shape[1] * table.classes.shape[1]
    number = max(1, _NEIGHBOURS_AT_A_TIME // max(1, a_row))
    for start in range(0, scores.size, number):
        rows = slice(start, start + number)
        users, items, weights, labels, before = (values[rows] for values in histories)
        label, new = labels[:, None], (before == 0)[:, None]
        there = table.classes[items] == label[..., None]
        likeness = np.where(there, table.likeness[items], 0.0).sum(axis=2, dtype=np.float64)
        pairs = likeness * counting.denominators(counts[items], counts[label])
        others = pairs - new * counting.pair_weights(_gaps(events, users, items, labels))
        # If only this user has the pair, its likeness becomes 0.
        known = (likeness > 0) & (others > _ROUNDING * pairs)
        norms = counting.denominators(np.maximum(counts[items] - new, 0), counts[label] - new)
        scores[rows] = (weights * np.where(known, others, 0.0) / np.where(known, norms, 1.0)).sum(1)
    return scores


def _gaps(events: Events, users: np.ndarray, items: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Minutes from each item to the user's label, float [rows, length]; 0 on padding."""
    gaps = np.zeros(items.shape)
    for row, user in enumerate(users):
        own = slice(events.offsets[user], events.offsets[user + 1])
        minutes = dict(zip(events.items[own].tolist(), events.minutes[own].tolist(), strict=True))
        at = minutes[int(labels[row])]
        for place in np.flatnonzero(items[row]):
            gaps[row, place] = at - minutes[int(items[row, place])]
    return gaps
