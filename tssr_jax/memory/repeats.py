"""Which items are taken again: the memory of what a user had before.

    score_j = rate_j * sum over the places p at which the history has j: 0.97^p
    rate_j = (a_j + 10 a / n) / (n_j + 10)

n_j counts the users who took item j in training, a_j those who took it again; n and a are their
sums over all items. The newest item has place 0, see `memory.scores`.
"""

import numpy as np

from tssr_jax.memory.co_occurrence import Events
from tssr_jax.memory.scores import Neighbours

# How much an item counts relative to one a place newer; 0.75 is worse (docs/results/repeats.md).
DECAY = 0.97
# An item's own rate counts as much as that of all items if so many users took it.
_SHRINKAGE = 10


def repeat_rates(events: Events, num_items: int) -> np.ndarray:
    """The share of its users who take an item again, float32 [num_items + 1].

    Args:
      events: the training interactions.
      num_items: size of the catalogue.
    """
    users = np.bincount(events.items, minlength=num_items + 1)
    again = np.bincount(events.items[events.again], minlength=num_items + 1)
    return _shrunk(again, users, _mean_rate(again, users))


def _mean_rate(again: np.ndarray, users: np.ndarray) -> float:
    return float(again.sum() / max(1, users.sum()))


def _shrunk(again: np.ndarray, users: np.ndarray, mean: float) -> np.ndarray:
    rates = (again + _SHRINKAGE * mean) / (users + _SHRINKAGE)
    return rates.astype(np.float32)


def repeat_table(events: Events, num_items: int) -> Neighbours:
    """The rates as a table in which each item has one neighbour: itself. Padding has none.

    Args:
      events: the training interactions.
      num_items: size of the catalogue.
    """
    rates = repeat_rates(events, num_items)
    rates[0] = 0.0
    return Neighbours(np.arange(num_items + 1, dtype=np.int32)[:, None], rates[:, None])


def rates_without_own(events: Events, labels: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Rates of users' next items, as if these were not among the training interactions.

    The mean rate of all items stays. An item that is new to its user has no score anyway.

    Args:
      events: the training interactions, the next items included.
      labels: int [rows], the next items.
      before: int [rows], how often each user had it before. 1: this item is the user's only
        repeat, so the user is subtracted from `a_j`. 2 or more: the user repeated it before, so
        `a_j` stays. 0: there is nothing to subtract.

    Returns:
      float32 [rows].
    """
    num_items = max(events.items.max(initial=0), labels.max(initial=0))
    users = np.bincount(events.items, minlength=num_items + 1)
    again = np.bincount(events.items[events.again], minlength=num_items + 1)
    mean = _mean_rate(again, users)
    return _shrunk(again[labels] - (before == 1), users[labels], mean)
