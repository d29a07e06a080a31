"""Further negatives of the contrastive terms: near items, and users of past steps."""

import jax
import jax.numpy as jnp
from flax import struct

from tssr_jax.losses.info_nce import ExtraKeys
from tssr_jax.parallel import collectives
from tssr_jax.parallel.collectives import Axis

# A negative of an anchor is drawn from this many nearest items.
NEAREST = 10


def draw_near_items(
    vectors: jax.Array, item_sequence: jax.Array, number: int, key: jax.Array, axis: Axis
) -> jax.Array:
    """Items that are near to items of the global batch, the same on all devices.

    Args:
      vectors: [num_classes, width], whose cosines measure nearness; items with a vector of zeros
        are not near to any item.
      item_sequence: int [batch, length], this device's rows.
      number: number of draws.
      key: random key; the result is a function of it and the batch.
      axis: the device axis that the batch is cut along.

    Returns:
      int32 [number]; an item may occur more than once; 0 where there is none.
    """
    places, choice = jax.random.split(key)
    items = collectives.all_gather(item_sequence, axis, 0).reshape(-1)
    real = jnp.argsort(items == 0, stable=True)
    count = jnp.maximum((items > 0).sum(), 1)
    anchors = items[real[jax.random.randint(places, (number,), 0, count)]]
    norms = jnp.linalg.norm(vectors, axis=1, keepdims=True)
    unit = jnp.where(norms > 0, vectors / jnp.where(norms > 0, norms, 1.0), 0.0)
    cosines = unit[anchors] @ unit.T
    classes = jnp.arange(vectors.shape[0])
    competes = (classes > 0) & (norms[:, 0] > 0) & (classes != anchors[:, None])
    best, near = jax.lax.top_k(jnp.where(competes, cosines, -jnp.inf), min(NEAREST, classes.size))
    chosen = jax.random.randint(choice, (number, 1), 0, near.shape[1])
    found = jnp.isfinite(jnp.take_along_axis(best, chosen, axis=1))[:, 0] & (anchors > 0)
    return jnp.where(found, jnp.take_along_axis(near, chosen, axis=1)[:, 0], 0).astype(jnp.int32)


@struct.dataclass
class UserQueue:
    """Users of past steps as a momentum encoder saw them, newest first (MoCo, arXiv 1911.05722).

    Attributes:
      id: pooled states of the id stream, [size, d_model].
      content: pooled states of the content stream, [size, d_model].
      filled: bool [size].
    """

    id: jax.Array
    content: jax.Array
    filled: jax.Array

    @classmethod
    def empty(cls, size: int, d_model: int) -> "UserQueue":
        """Without any users."""
        vectors = jnp.zeros((size, d_model))
        return cls(vectors, vectors, jnp.zeros(size, bool))

    def extended(
        self, own_id: jax.Array, own_content: jax.Array, row_mask: jax.Array, axis: Axis
    ) -> "UserQueue":
        """Adds the users of the global batch in front, and drops the oldest users.

        Args:
          own_id: pooled id states of this device's rows, [batch, d_model].
          own_content: pooled content states of this device's rows, [batch, d_model].
          row_mask: bool [batch], rows with a user.
          axis: the device axis that the batch is cut along.
        """

        def add(own: jax.Array, old: jax.Array) -> jax.Array:
            new = collectives.all_gather(own, axis, 0)
            return jnp.concatenate([new, old])[: old.shape[0]]

        return UserQueue(
            add(own_id, self.id), add(own_content, self.content), add(row_mask, self.filled)
        )

    def keys(self, stream: str) -> ExtraKeys:
        """The queue as negatives of one stream."""
        vectors = self.id if stream == "id" else self.content
        return ExtraKeys(jax.lax.stop_gradient(vectors), self.filled, None)
