"""Classes drawn to stand for the whole catalogue, and how often each is expected to be drawn.

Classes are drawn with replacement, class c with a chance that is proportional to a whole number of
its own, so that chances are exact: float32 sums over a million classes would not be.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Chances are multiples of 1 over this, or a little less.
_TOTAL = 2**30


class DrawnItems(NamedTuple):
    """Drawn classes, the same on all devices.

    Attributes:
      classes: int32 [number], some maybe more than once.
      log_expected: float32 [number], how often each is expected among them, its logarithm.
    """

    classes: jax.Array
    log_expected: jax.Array


def cumulative_chances(counts: np.ndarray, power: float) -> np.ndarray:
    """The chances of classes proportional to `counts ** power`, summed up: int32 [num_classes].

    Args:
      counts: int [num_classes], how often training sees each; negative for classes that are never
        to be drawn. (Others are drawn now and then even where it sees them never.)
      power: 0 draws all alike, 1 as often as training sees them.

    Raises:
      ValueError: if no class may be drawn.
    """
    allowed = counts >= 0
    if not allowed.any():
        raise ValueError("no class may be drawn")
    weights = np.where(allowed, np.maximum(counts, 1).astype(np.float64) ** power, 0.0)
    room = _TOTAL - allowed.sum()
    whole = np.floor(weights * (room / weights.sum())).astype(np.int64) + allowed
    return np.cumsum(whole).astype(np.int32)


def draw(cumulative: jax.Array, number: int, key: jax.Array) -> DrawnItems:
    """Draws classes with the chances that `cumulative_chances` gave.

    Args:
      cumulative: int32 [num_classes].
      number: how many are drawn.
      key: of which, with the other arguments, the result is a function.
    """
    total = cumulative[-1]
    point = jax.random.randint(key, (number,), 0, total)
    classes = jnp.searchsorted(cumulative, point, side="right").astype(jnp.int32)
    below = jnp.where(classes > 0, cumulative[jnp.maximum(classes - 1, 0)], 0)
    chance = (cumulative[classes] - below) / total
    return DrawnItems(classes, jnp.log(chance * number))
