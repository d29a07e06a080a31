"""What content encoders that are trained have in common: each distinct item of a batch once.

The batch brings the distinct items that occur in it. Every device encodes its share, in
micro-batches whose activations are computed again in the backward pass, and all get all vectors:
what a step costs depends on the distinct items, and its memory on the size of a micro-batch.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from tssr_jax import collectives
from tssr_jax.collectives import Axis
from tssr_jax.models.content.frozen import DistinctFeatures

# Fills up the distinct items of a batch: no item has this id.
NO_ITEM = jnp.iinfo(jnp.int32).max


class TrainedEncoder(Protocol):
    """The trained part of a content encoder, as a pure function of its parameters."""

    @property
    def width(self) -> int:
        """Of an item's vector."""

    @property
    def num_layers(self) -> int:
        """Layers in all, for step sizes by layer."""

    def depth(self, name: str) -> int:
        """How many layers lie above the parameters of this name (the first of their path)."""

    def distinct_features(
        self, params: Any, inputs: Any, part: Any, axis: Axis, *, train: bool
    ) -> tuple[DistinctFeatures, Any]:
        """Vectors of the distinct items of the global batch, on every device.

        Args:
          params: of the trained part.
          inputs: what every step reads, whole on each device.
          part: what the batch brings for this device's share of the items.
          axis: the device axis that the batch is cut along.
          train: whether statistics of the batch are taken, where the encoder has any.

        Returns:
          The features, and parameters that replace some of `params` without a gradient ({}).
        """


def parameters_name(modality: str) -> str:
    """Of an encoder's parameters among those of the model: "text_encoder"."""
    return f"{modality}_encoder"


def in_micro_batches(
    encode: Callable[[jax.Array, Any], Any], ids: jax.Array, rows: Any, size: int, axis: Axis = None
) -> Any:
    """Encodes `size` items at a time; activations live for one micro-batch only.

    Args:
      encode: maps ids int [size] and their rows to a tree of arrays.
      ids: int [number], a multiple of `size`; `NO_ITEM` where there is none. Where all of a
        micro-batch are, nothing is computed and the results are zeros.
      rows: tree of arrays [number, ...].
      size: of a micro-batch.
      axis: where `encode` meets other devices, which must agree on what is left out.

    Returns:
      The tree of results, [number / size, ...].
    """

    def cut(x: jax.Array) -> jax.Array:
        return x.reshape(-1, size, *x.shape[1:])

    ids, rows = cut(ids), jax.tree.map(cut, rows)
    shapes = jax.eval_shape(encode, ids[0], jax.tree.map(lambda x: x[0], rows))
    busy = (ids != NO_ITEM).any(axis=1).astype(jnp.int32)
    busy = collectives.pmax(busy, axis) > 0

    def some_or_none(inputs: tuple[jax.Array, jax.Array, Any]) -> Any:
        is_busy, *arguments = inputs
        return jax.lax.cond(
            is_busy,
            jax.checkpoint(encode),
            lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
            *arguments,
        )

    return jax.lax.map(some_or_none, (busy, ids, rows))


def joined(ids: list[jax.Array], vectors: list[jax.Array], axis: Axis) -> DistinctFeatures:
    """All devices' items by ascending id, from each device's ids [n] and vectors [n, width]."""
    all_ids = jnp.concatenate([collectives.all_gather(own, axis, 0) for own in ids])
    order = jnp.argsort(all_ids)
    gathered = jnp.concatenate([collectives.all_gather(own, axis, 0) for own in vectors])
    return DistinctFeatures(all_ids[order], gathered[order])


def scatter(table: jax.Array, features: DistinctFeatures) -> jax.Array:
    """The table [classes, width] with the rows of these items in their places."""
    return table.at[features.ids].set(features.vectors, mode="drop")
