"""Further keys of the contrasting terms, beside the batch's: near items, and users of the past."""

import jax
import jax.numpy as jnp
from flax import struct

from tssr_jax.losses.info_nce import ExtraKeys
from tssr_jax.parallel import collectives
from tssr_jax.parallel.collectives import Axis

# An anchor's negative is one of so many items that are nearest to it.
NEAREST = 10


def draw_near_items(
    vectors: jax.Array, item_sequence: jax.Array, number: int, key: jax.Array, axis: Axis
) -> jax.Array:
    """Items that are near to items of the global batch, the same on all devices.

    Args:
      vectors: [num_classes, width], in whose space cosines tell what is near; items with a vector
        of zeros are near to nothing.
      item_sequence: int [batch, length], this device's rows.
      number: how many are drawn.
      key: of which, with the batch, the result is a function.
      axis: the device axis that the batch is cut along.

    Returns:
      int32 [number], some maybe more than once; 0 where there is none.
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
      content: the same of the content stream.
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
        """With the users of the global batch before all others; the oldest ones leave.

        Args:
          own_id: pooled states of this device's rows, [batch, d_model].
          own_content: the same.
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
        """Of one stream."""
        vectors = self.id if stream == "id" else self.content
        return ExtraKeys(jax.lax.stop_gradient(vectors), self.filled, None)
