"""Common code of trainable content encoders: each distinct item of a batch is encoded once.

The batch lists its distinct items. Every device encodes its share in micro-batches; then all
devices get all vectors. The backward pass recomputes activations of micro-batches (texts keep those
of the first one). A step's cost depends on the number of distinct items, its memory on the size of
a micro-batch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from tssr_jax.models.content import DistinctFeatures
from tssr_jax.parallel import collectives
from tssr_jax.parallel.collectives import Axis
from tssr_jax.parallel.sharding import ENCODER_SUFFIX

# Pads the distinct items of a batch; no item has this id.
NO_ITEM = jnp.iinfo(jnp.int32).max


class TrainedEncoder(Protocol):
    """The trained part of a content encoder, as a pure function of its parameters."""

    @property
    def width(self) -> int:
        """Width of an item's vector."""

    @property
    def num_layers(self) -> int:
        """Layers in all, for step sizes by layer."""

    def depth(self, name: str) -> int:
        """How many layers lie above the parameters of this name (the first of their path)."""

    def distinct_features(
        self, params: Any, inputs: Any, part: Any, axis: Axis
    ) -> DistinctFeatures:
        """Vectors of the distinct items of the global batch, on every device.

        Args:
          params: parameters of the trained part.
          inputs: inputs that every step reads, whole on each device.
          part: the batch's inputs for this device's share of the items.
          axis: the device axis that the batch is cut along.
        """


def parameters_name(modality: str) -> str:
    """The name of an encoder's parameters in the model's parameters: "text_encoder"."""
    return f"{modality}{ENCODER_SUFFIX}"


class MicroBatches(NamedTuple):
    """Encodes a few items at a time; the activations of one micro-batch live at a time.

    The gradient is written by hand: the backward pass encodes each micro-batch again and adds up.
    (Differentiating the loop would keep a copy of the parameters for each micro-batch, because each
    branch of a conditional saves its own residuals: measured as 5 GiB for MiniLM on ML-1M.)

    Attributes:
      encode: maps (params, fixed, ids int [size, ...], rows [size, ...]) to a tree of arrays.
      size: of a micro-batch.
    """

    encode: Callable[[Any, Any, jax.Array, Any], Any]
    size: int

    def __call__(self, params: Any, fixed: Any, ids: jax.Array, rows: Any) -> Any:
        """Runs `encode` on all items.

        Args:
          params: parameters, which have a gradient.
          fixed: further inputs, which have none.
          ids: int [number, ...], a multiple of `size`; `NO_ITEM` is padding. A micro-batch of
            padding alone is skipped, and its results are zeros.
          rows: tree of arrays [number, ...].

        Returns:
          The tree of results, [number / size, ...].
        """
        run = jax.custom_vjp(self._forward)
        run.defvjp(lambda *inputs: (self._forward(*inputs), inputs), self._backward)
        return run(params, fixed, ids, rows)

    def _cut(self, ids: jax.Array, rows: Any) -> tuple[jax.Array, jax.Array, Any]:
        """Which micro-batches have an item, and their ids and rows."""
        ids, rows = jax.tree.map(lambda x: x.reshape(-1, self.size, *x.shape[1:]), (ids, rows))
        return (ids != NO_ITEM).any(axis=tuple(range(1, ids.ndim))), ids, rows

    def _forward(self, params: Any, fixed: Any, ids: jax.Array, rows: Any) -> Any:
        def some_or_none(inputs: tuple[jax.Array, jax.Array, Any]) -> Any:
            busy, *own = inputs
            encode = functools.partial(self.encode, params, fixed)
            shapes = jax.eval_shape(encode, *own)

            def nothing(*_: Any) -> Any:
                return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

            return jax.lax.cond(busy, encode, nothing, *own)

        return jax.lax.map(some_or_none, self._cut(ids, rows))

    def _backward(self, inputs: tuple[Any, ...], cotangents: Any) -> tuple[Any, None, None, None]:
        params, fixed, ids, rows = inputs

        def body(total: Any, own: tuple[Any, ...]) -> tuple[Any, None]:
            (busy, ids, rows), cotangent = own

            def add(total: Any) -> Any:
                _, transpose = jax.vjp(lambda p: self.encode(p, fixed, ids, rows), params)
                return jax.tree.map(jnp.add, total, *transpose(cotangent))

            return jax.lax.cond(busy, add, lambda total: total, total), None

        start = jax.tree.map(jnp.zeros_like, params)
        total, _ = jax.lax.scan(body, start, (self._cut(ids, rows), cotangents))
        return total, None, None, None


def joined(ids: list[jax.Array], vectors: list[jax.Array], axis: Axis) -> DistinctFeatures:
    """All devices' items by ascending id, from each device's ids [n] and vectors [n, width]."""
    all_ids = jnp.concatenate([collectives.all_gather(own, axis, 0) for own in ids])
    order = jnp.argsort(all_ids)
    gathered = jnp.concatenate([collectives.all_gather(own, axis, 0) for own in vectors])
    return DistinctFeatures(all_ids[order], gathered[order])


def scatter(table: jax.Array, features: DistinctFeatures) -> jax.Array:
    """The table [classes, width] with the rows of these items in their places."""
    return table.at[features.ids].set(features.vectors, mode="drop")
