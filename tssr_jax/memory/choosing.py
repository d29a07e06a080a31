"""How fast pairs of items fade with the time between them, chosen by what it predicts.

Each value is tested on a sample of users: co-occurrence ranks a user's newest training item after
that user's own pairs are removed. The value with the highest NDCG@50 wins. NDCG@50 separates values
better than NDCG@10 (MovieLens-1M: 0.45 beats 0.2 by 5.5 standard errors in place of 2.5).
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import scipy.sparse

from tssr_jax.memory.co_occurrence import Counting, Events, co_occurrence_neighbours
from tssr_jax.memory.leave_one_out import Histories, scores_without_own
from tssr_jax.memory.scores import Neighbours, history_weights

# Where times are days, 0.02 to 0.1 were best; where they are seconds, 0.45 to 1, equally good
# (docs/internals/decisions.md).
FADINGS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.45)
# This many pairs take less than half a minute to count six times. 1,400 users of MovieLens-1M have
# them; 140 users were too few to tell values apart.
_MOST_PAIRS = 100_000_000
_MOST_HISTORIES = 4_000
_CUTOFF = 50
_LENGTH = 50
_NEIGHBOURS = 100
_ROWS_AT_A_TIME = 256


def best_fading(  # noqa: PLR0917
    events: Events,
    num_items: int,
    counting: Counting,
    decay: float,
    fadings: Sequence[float] = FADINGS,
    most_pairs: int = _MOST_PAIRS,
) -> float:
    """The value of `memory.fading` by which users' newest training items rank best.

    Args:
      events: the training interactions.
      num_items: size of the catalogue.
      counting: how pairs are counted; its fading is not read.
      decay: weight of an item of a history relative to an item one place newer.
      fadings: what is tried; the first one wins if there is nothing to compare.
      most_pairs: users are drawn until they have as many pairs.
    """
    events = _some_users(events, most_pairs)
    sizes = np.diff(events.offsets)
    users = np.flatnonzero(sizes > 1)[:_MOST_HISTORIES]
    if not users.size:
        return fadings[0]
    histories = _histories(events, users, decay)
    found = []
    for fading in fadings:
        own = counting._replace(fading=fading)
        table = co_occurrence_neighbours(events, num_items, _NEIGHBOURS, own)
        labels = scores_without_own(table, events, histories, own)
        ranks = _ranks(table, events, histories, labels)
        found.append(np.where(ranks < _CUTOFF, 1 / np.log2(2 + ranks), 0.0).mean())
    return fadings[int(np.argmax(found))]


def _some_users(events: Events, most_pairs: int) -> Events:
    """The events of some users, drawn at random: with `most_pairs` pairs at most.

    They are the same in every run, so that runs with different seeds have one setting.
    """
    sizes = np.diff(events.offsets)
    order = np.random.default_rng(0).permutation(sizes.size)
    # A user with a tenth of these pairs or more, such as a program, leaves too little for others.
    order = order[sizes[order] ** 2 <= most_pairs // 10]
    enough = int(np.searchsorted(np.cumsum(sizes[order] ** 2), most_pairs, side="right"))
    users = order[:enough]
    own = (np.arange(*events.offsets[[user, user + 1]]) for user in users.tolist())
    kept = np.concatenate([np.arange(0), *own])
    offsets = np.concatenate([[0], np.cumsum(sizes[users])])
    return Events(offsets, events.items[kept], events.minutes[kept], events.again[kept])


def _histories(events: Events, users: np.ndarray, decay: float) -> Histories:
    """The users' newest items, and what they had before."""
    items, minutes = np.zeros((2, users.size, _LENGTH), np.int32)
    labels = np.zeros(users.size, np.int32)
    for row, user in enumerate(users.tolist()):
        first, last = events.offsets[user], events.offsets[user + 1] - 1
        own = np.arange(max(first, last - _LENGTH), last)
        labels[row] = events.items[last]
        items[row, _LENGTH - own.size :] = events.items[own]
        minutes[row, _LENGTH - own.size :] = events.minutes[own]
    weights = history_weights(jnp.asarray(items), jnp.asarray(minutes), decay)
    return Histories(users, items, np.asarray(weights), labels, np.zeros(users.size, np.int64))


def _ranks(
    table: Neighbours, events: Events, histories: Histories, labels: np.ndarray
) -> np.ndarray:
    """How many items that the user does not have score at least as high as the label, [rows]."""
    classes, number = table.classes.shape
    ends = number * np.arange(classes + 1)
    shape = (classes, classes)
    likeness = scipy.sparse.csr_array((table.likeness.ravel(), table.classes.ravel(), ends), shape)
    ranks = np.zeros(len(labels), np.int64)
    for start in range(0, len(labels), _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        users, items, weights, *_ = (values[rows] for values in histories)
        row = np.repeat(np.arange(len(items)), items.shape[1])
        of = scipy.sparse.csr_array((weights.ravel(), (row, items.ravel())), (len(items), classes))
        scores = (of @ likeness).toarray()
        for i, user in enumerate(users.tolist()):
            scores[i, events.items[events.offsets[user] : events.offsets[user + 1]]] = -1.0
        scores[:, 0] = -1.0
        ranks[rows] = (scores >= labels[rows, None]).sum(axis=1)
    return ranks
