"""How often each class was taken around a time: what people want comes and goes.

    m_pj = sum over periods r of exp(-|p - r| / 3) n_rj

n_rj counts the users who took class j in period r. 32 periods have equally many interactions each,
so a period is short where much happens. m is divided by its mean.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# 16 periods are too few, 128 no better; a reach of 2 or 4 is as good (docs/internals/decisions.md).
PERIODS = 32
_REACH = 3.0


class Popularity(NamedTuple):
    """Popularity of all classes in each period.

    Attributes:
      ends: int32 [periods - 1], the last minute of each period but the last, ascending.
      scores: float32 [periods, num_items + 1].
    """

    ends: np.ndarray
    scores: np.ndarray


def popularity_by_period(items: np.ndarray, minutes: np.ndarray, num_items: int) -> Popularity:
    """Popularity of all classes in each period.

    Args:
      items: int32 [number], of the interactions that count.
      minutes: int32 [number], their times since 1970.
      num_items: size of the catalogue.
    """
    scores = np.zeros((PERIODS, num_items + 1), np.float32)
    ends = np.zeros(PERIODS - 1, np.int32)
    if not items.size:
        return Popularity(ends, scores)
    last = np.arange(1, PERIODS) * items.size // PERIODS
    ends[:] = np.sort(minutes)[np.maximum(last - 1, 0)]
    period_of = np.searchsorted(ends, minutes)
    for period in range(PERIODS):
        own = items[period_of == period]
        scores[period] = np.bincount(own, minlength=num_items + 1)
    numbers = np.arange(PERIODS)
    near = np.exp(-np.abs(numbers[:, None] - numbers) / _REACH).astype(np.float32)
    scores = near @ scores
    return Popularity(ends, scores / scores[:, 1:].mean())


def popularity_at(popularity: Popularity, times: jax.Array) -> jax.Array:
    """Popularity of all classes, float32 [batch, num_items + 1].

    Args:
      popularity: by period.
      times: int [batch], minutes since 1970; later ones than all interactions are of the last
        period.
    """
    # Not by jnp.searchsorted, which converters to other formats don't know.
    period = (jnp.asarray(popularity.ends) < times[:, None]).sum(axis=1)
    return jnp.asarray(popularity.scores)[period]
