"""Next-item prediction: softmax cross entropy over the whole catalogue (SPEC, model step 6).

Scores of all positions against all items are never held. Positions without a label are moved
to the back; the others go through the head in tiles of a few hundred, and each tile's share of
the gradient is taken while its scores are at hand. The loss is linear in the incoming
cotangent (a scalar), so that the backward pass only scales what the forward pass kept.

Where the catalogue is cut over devices, a tile is put together from the positions of the devices
of a group, each scores its own classes, and log-sum-exps and gradients are added up (the
vocabulary-parallel loss of Megatron-LM, arXiv 1909.08053).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tssr_jax import collectives
from tssr_jax.catalogue import Catalogue
from tssr_jax.collectives import Axis
from tssr_jax.losses.term import LossTerm
from tssr_jax.models.precision import product

POSITIONS_PER_TILE = 512


def next_item_loss(
    fused: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    counted: jax.Array,
    *,
    exclude_padding_class: bool,
    catalogue: Catalogue,
    rows_axis: Axis = None,
    compute_dtype: str = "float32",
    positions_per_tile: int = POSITIONS_PER_TILE,
) -> LossTerm:
    """Cross entropy of `fused @ kernel + bias` with the labels, summed over counted positions.

    Args:
      fused: [batch, length, d_model].
      kernel: [d_model, shard_classes].
      bias: [shard_classes].
      labels: int [batch, length]; read where `counted` is True.
      counted: bool [batch, length].
      exclude_padding_class: class 0 does not compete in the softmax.
      catalogue: how the classes lie on the devices.
      rows_axis: the device axis that the batch is cut along; None on one device.
      compute_dtype: of the inputs of products, forward and backward; all else is float32.
      positions_per_tile: positions whose scores are held at a time.

    Returns:
      This device's share. (Devices that hold parts of one catalogue share their sum equally.)
    """
    num_positions = labels.size
    tile = max(1, min(positions_per_tile // catalogue.num_shards, num_positions))
    order = jnp.argsort(~counted.reshape(-1), stable=True)
    order = jnp.pad(order, (0, -num_positions % tile))
    count = counted.sum()
    states = fused.reshape(num_positions, -1)[order]
    targets = labels.reshape(-1)[order]
    classes = catalogue.classes()
    competes = (classes < catalogue.num_classes) & ((classes > 0) | (not exclude_padding_class))
    bias = jnp.where(competes, bias, -jnp.inf)
    tiles = _Tiles(catalogue, rows_axis, tile, compute_dtype)
    total = _sum_cross_entropy(states, kernel, bias, targets, count, tiles)
    return LossTerm(total / catalogue.num_shards, count.astype(total.dtype))


class _Tiles(NamedTuple):
    """How positions are gone through: `size` of each device's at a time."""

    catalogue: Catalogue
    rows_axis: Axis
    size: int
    compute_dtype: str

    def number(self, count: jax.Array) -> jax.Array:
        """Tiles with a position that counts; the same on devices that work together."""
        own = (count + self.size - 1) // self.size
        return own if self.catalogue.axis is None else collectives.pmax(own, self.rows_axis)

    def cut(
        self, states: jax.Array, targets: jax.Array, count: jax.Array, i: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The group's i-th tile: states, targets, and which of them count."""
        start = i * self.size
        return self.catalogue.gather_rows(
            (
                jax.lax.dynamic_slice_in_dim(states, start, self.size),
                jax.lax.dynamic_slice_in_dim(targets, start, self.size),
                start + jnp.arange(self.size) < count,
            )
        )


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _sum_cross_entropy(  # noqa: PLR0917
    states: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    count: jax.Array,
    tiles: _Tiles,
) -> jax.Array:
    """Sum over the first `count` rows of states [positions, d_model] of each device of the group.

    All devices of the group get the same sum, and must give the same cotangent.
    """
    catalogue = tiles.catalogue

    def body(i: jax.Array, total: jax.Array) -> jax.Array:
        x, y, weights = tiles.cut(states, targets, count, i)
        logits = product(x, kernel, tiles.compute_dtype) + bias
        losses = catalogue.logsumexp(logits) - catalogue.pick(logits, y)
        return total + jnp.where(weights, losses, 0.0).sum()

    return jax.lax.fori_loop(0, tiles.number(count), body, jnp.zeros((), states.dtype))


def _forward(  # noqa: PLR0917
    states: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    count: jax.Array,
    tiles: _Tiles,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    catalogue = tiles.catalogue
    classes = catalogue.classes()

    def body(
        i: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        total, d_states, d_kernel, d_bias = carry
        x, y, weights = tiles.cut(states, targets, count, i)
        logits = product(x, kernel, tiles.compute_dtype) + bias
        log_normaliser = catalogue.logsumexp(logits)
        losses = jnp.where(weights, log_normaliser - catalogue.pick(logits, y), 0.0)
        probabilities = jnp.exp(logits - log_normaliser[:, None])
        d_logits = jnp.where(weights[:, None], probabilities - (classes == y[:, None]), 0.0)
        d_tile = catalogue.own_rows_of_sum(product(d_logits, kernel.T, tiles.compute_dtype))
        return (
            total + losses.sum(),
            jax.lax.dynamic_update_slice_in_dim(d_states, d_tile, i * tiles.size, 0),
            d_kernel + product(x.T, d_logits, tiles.compute_dtype),
            d_bias + d_logits.sum(axis=0),
        )

    start = (
        jnp.zeros((), states.dtype),
        jnp.zeros_like(states),
        jnp.zeros_like(kernel),
        jnp.zeros_like(bias),
    )
    total, *gradients = jax.lax.fori_loop(0, tiles.number(count), body, start)
    return total, tuple(gradients)


def _backward(
    tiles: _Tiles, gradients: tuple[jax.Array, jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array | None, ...]:
    # The shares add up to the sum that all devices of the group have: of as many equal
    # cotangents, each a part, the whole is what counts.
    d_states, d_kernel, d_bias = (cotangent * tiles.catalogue.num_shards * g for g in gradients)
    return d_states, d_kernel, d_bias, None, None


_sum_cross_entropy.defvjp(_forward, _backward)
