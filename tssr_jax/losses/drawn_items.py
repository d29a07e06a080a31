"""Classes drawn in place of the whole catalogue, and the expected number of draws of each.

Classes are drawn with replacement. Their probabilities are proportional to whole numbers, and so
exact: float32 sums over a million classes would not be.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Upper bound of the sum of these whole numbers.
_TOTAL = 2**30


class DrawnItems(NamedTuple):
    """Drawn classes, the same on all devices.

    Attributes:
      classes: int32 [number]; a class may occur more than once.
      log_expected: float32 [number], logarithm of the expected number of draws of each.
    """

    classes: jax.Array
    log_expected: jax.Array


def cumulative_chances(weights: np.ndarray) -> np.ndarray:
    """Cumulative whole numbers in proportion to the weights, int32 [num_classes].

    Args:
      weights: [num_classes], at least 0; a class of weight 0 is never drawn.

    Raises:
      ValueError: if no class may be drawn.
    """
    allowed = weights > 0
    if not allowed.any():
        raise ValueError("no class may be drawn")
    room = _TOTAL - allowed.sum()
    whole = np.floor(weights * (room / weights.sum())).astype(np.int64) + allowed
    return np.cumsum(whole).astype(np.int32)


def draw(cumulative: jax.Array, number: int, key: jax.Array) -> DrawnItems:
    """Draws classes with the chances that `cumulative_chances` gave.

    Args:
      cumulative: int32 [num_classes].
      number: how many are drawn.
      key: random key; the result is a function of it and the other arguments.
    """
    total = cumulative[-1]
    point = jax.random.randint(key, (number,), 0, total)
    classes = jnp.searchsorted(cumulative, point, side="right").astype(jnp.int32)
    below = jnp.where(classes > 0, cumulative[jnp.maximum(classes - 1, 0)], 0)
    chance = (cumulative[classes] - below) / total
    return DrawnItems(classes, jnp.log(chance * number))
