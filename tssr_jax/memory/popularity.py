"""How often each class was taken around a time, or before it: what people want comes and goes.

    around    m_pj = sum over periods r of exp(-|p - r| / 3) n_rj
    before    m_pj = sum over periods r < p of exp(-(p - 1 - r) / 3) n_rj

n_rj counts the users who took class j for the first time in period r. 32 periods have equally many
interactions each, so a period is short where much happens. m is divided by its mean.

Leave-one-out asks at many dates, and training knows what other users took afterwards. A split by
time asks after all that training knows. So its gate learns from what was before, too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# 16 periods are too few, 128 no better; a reach of 2 or 4 is as good (docs/internals/decisions.md).
PERIODS = 32
_REACH = 3.0
# Earlier than all times.
_EVER = -(2**31)


class Popularity(NamedTuple):
    """Popularity of all classes in each period.

    Attributes:
      ends: int32 [periods - 1], the last minute of each period but the last, ascending.
      scores: float32 [periods, num_items + 1].
      asked_from: int32, a scalar: histories that end before this minute are ranked at it.
    """

    ends: np.ndarray
    scores: np.ndarray
    asked_from: np.ndarray = np.array(_EVER, np.int32)


def popularity_around(items: np.ndarray, minutes: np.ndarray, num_items: int) -> Popularity:
    """Popularity of all classes around each period.

    Args:
      items: int32 [number], of the interactions that count.
      minutes: int32 [number], their times since 1970.
      num_items: size of the catalogue.
    """
    ends, counts = _by_period(items, minutes, num_items)
    numbers = np.arange(PERIODS)
    near = np.exp(-np.abs(numbers[:, None] - numbers) / _REACH).astype(np.float32)
    scores = near @ counts
    return Popularity(ends[:-1], scores / (scores[:, 1:].mean() or 1.0))


def popularity_before(items: np.ndarray, minutes: np.ndarray, num_items: int) -> Popularity:
    """Popularity of all classes before each period, and after all: there histories are ranked.

    Each period's scores have a mean of 1; the first one's are 0.

    Args:
      items: int32 [number], of the interactions that count.
      minutes: int32 [number], their times since 1970.
      num_items: size of the catalogue.
    """
    ends, counts = _by_period(items, minutes, num_items)
    back = np.arange(PERIODS + 1)[:, None] - 1 - np.arange(PERIODS)
    near = np.where(back >= 0, np.exp(-np.maximum(back, 0) / _REACH), 0.0).astype(np.float32)
    scores = near @ counts
    means = scores[:, 1:].mean(axis=1, keepdims=True)
    after = np.array(min(int(ends[-1]) + 1, 2**31 - 1), np.int32)
    return Popularity(ends, scores / np.where(means > 0, means, 1.0), after)


def _by_period(
    items: np.ndarray, minutes: np.ndarray, num_items: int
) -> tuple[np.ndarray, np.ndarray]:
    """The last minute of each period, and its counts of all classes, float32 [periods, classes]."""
    ends, counts = np.zeros(PERIODS, np.int32), np.zeros((PERIODS, num_items + 1), np.float32)
    if items.size:
        last = np.arange(1, PERIODS + 1) * items.size // PERIODS
        ends[:] = np.sort(minutes)[np.maximum(last - 1, 0)]
    period_of = np.searchsorted(ends[:-1], minutes)
    for period in range(PERIODS):
        counts[period] = np.bincount(items[period_of == period], minlength=num_items + 1)
    return ends, counts


def popularity_at(popularity: Popularity, times: jax.Array) -> jax.Array:
    """Popularity of all classes, float32 [batch, num_items + 1].

    Args:
      popularity: by period.
      times: int [batch], minutes since 1970; later ones than all `ends` are of the last period.
    """
    # Not by jnp.searchsorted, which converters to other formats don't know.
    period = (jnp.asarray(popularity.ends) < times[:, None]).sum(axis=1)
    return jnp.asarray(popularity.scores)[period]
