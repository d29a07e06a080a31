"""Scores of all classes for a history, by the neighbours of its items.

    score_j = sum over items s of the history: decay^place(s) * likeness(s, j)

The newest item has place 0. Items of one time share their mean place: their order is not known.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tssr_jax.memory.popularity import Popularity
from tssr_jax.parallel.catalogue import Catalogue


class Neighbours(NamedTuple):
    """For each class, the classes like it.

    Attributes:
      classes: int32 [num_items + 1, number].
      likeness: float32 [num_items + 1, number], at least 0; 0 where there are fewer.
    """

    classes: np.ndarray
    likeness: np.ndarray


class Memories(NamedTuple):
    """What a model with memories reads.

    Attributes:
      tables: by name of a memory of neighbours.
      popularity: for the memory of this name; None without.
      frequency: float32 [num_items + 1], log(1 + users who took the class in training, but for
        what the gate learns to predict), minus its mean over the items.
      decay: weight of an item of the history relative to an item one place newer, a scalar.
      least_length: int32, a scalar: the gate reads shorter histories as if they had this length,
        because it has learnt nothing of them.
    """

    tables: Mapping[str, Neighbours]
    popularity: Popularity | None
    frequency: np.ndarray
    decay: np.ndarray
    least_length: np.ndarray = np.array(1, np.int32)


# The minute given to the newest item of a history without times. It is later than any real time.
NOW = 2**31 - 1


def joined(first: Neighbours, second: Neighbours, weight: float) -> Neighbours:
    """Both: the likeness of two classes is that of `first` plus `weight` times that of `second`."""
    likeness = np.concatenate([first.likeness, np.float32(weight) * second.likeness], axis=1)
    return Neighbours(np.concatenate([first.classes, second.classes], axis=1), likeness)


def tie_bounds(times: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First and last position of the run of equal times around each position, int [batch, length].

    Args:
      times: int [batch, length], oldest first.
    """
    length = times.shape[1]
    here = jnp.arange(length, dtype=jnp.float32)  # ONNX Runtime finds no maxima of whole numbers
    other = times[:, 1:] != times[:, :-1]
    ends = jnp.ones_like(times[:, :1], bool)
    first = jax.lax.cummax(jnp.where(jnp.c_[ends, other], here, 0), axis=1)
    last = jax.lax.cummin(jnp.where(jnp.c_[other, ends], here, length), axis=1, reverse=True)
    return first.astype(jnp.int32), last.astype(jnp.int32)


def places(times: jax.Array) -> jax.Array:
    """Places of a history's items, float32 [batch, length].

    Args:
      times: int [batch, length], oldest first, padded on the left.
    """
    first, last = tie_bounds(times)
    return times.shape[1] - 1 - (first + last) / 2


def history_weights(items: jax.Array, times: jax.Array, decay: float | jax.Array) -> jax.Array:
    """`decay^place` of each item, 0 on padding: float32 [batch, length].

    Args:
      items: int [batch, length], oldest first, 0 is padding on the left.
      times: int [batch, length], 0 on padding.
      decay: weight of an item relative to an item one place newer.
    """
    # Padding has a time of its own, whatever the times of the items.
    times = jnp.where(items > 0, times, jnp.iinfo(jnp.int32).min)
    return jnp.where(items > 0, decay ** places(times), 0.0)


def neighbour_scores(
    neighbours: Neighbours, items: jax.Array, weights: jax.Array, catalogue: Catalogue
) -> jax.Array:
    """Weighted sums of the likeness of a history's items to each class.

    Args:
      neighbours: of all classes.
      items: int [batch, length].
      weights: float32 [batch, length], of the items.
      catalogue: how the classes lie on the devices.

    Returns:
      float32 [batch, shard_classes].
    """
    shares = weights[..., None] * neighbours.likeness[items]
    flat = (items.shape[0], -1)
    return catalogue.scattered(neighbours.classes[items].reshape(flat), shares.reshape(flat))
