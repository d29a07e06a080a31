"""Next-item prediction: softmax cross entropy over the whole catalogue (SPEC, model step 6).

Scores of all positions against all items are never held. Positions without a label are moved
to the back; the others go through the head in tiles of a few hundred, and each tile's share of
the gradient is taken while its scores are at hand. The loss is linear in the incoming
cotangent (a scalar), so that the backward pass only scales what the forward pass kept.
"""

from functools import partial

import jax
import jax.numpy as jnp

from tssr_jax.losses.term import LossTerm

POSITIONS_PER_TILE = 512


def next_item_loss(
    fused: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    counted: jax.Array,
    *,
    exclude_padding_class: bool,
    positions_per_tile: int = POSITIONS_PER_TILE,
) -> LossTerm:
    """Cross entropy of `fused @ kernel + bias` with the labels, summed over counted positions.

    Args:
      fused: [batch, length, d_model].
      kernel: [d_model, num_items + 1].
      bias: [num_items + 1].
      labels: int [batch, length]; read where `counted` is True.
      counted: bool [batch, length].
      exclude_padding_class: class 0 does not compete in the softmax.
      positions_per_tile: positions whose scores are held at a time.
    """
    num_positions = labels.size
    tile = min(positions_per_tile, num_positions)
    order = jnp.argsort(~counted.reshape(-1), stable=True)
    order = jnp.pad(order, (0, -num_positions % tile))
    count = counted.sum()
    states = fused.reshape(num_positions, -1)[order]
    targets = labels.reshape(-1)[order]
    if exclude_padding_class:
        bias = bias.at[0].set(-jnp.inf)
    total = _sum_cross_entropy(states, kernel, bias, targets, count, tile)
    return LossTerm(total, count.astype(total.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _sum_cross_entropy(  # noqa: PLR0917
    states: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    count: jax.Array,
    tile: int,
) -> jax.Array:
    """Sum over the first `count` rows of states [positions, d_model], `tile` rows at a time."""

    def body(i: jax.Array, total: jax.Array) -> jax.Array:
        x, y, weights = _tile(states, targets, count, i, tile)
        logits = x @ kernel + bias
        losses = jax.nn.logsumexp(logits, axis=-1) - _pick(logits, y)
        return total + jnp.where(weights, losses, 0.0).sum()

    return jax.lax.fori_loop(0, _num_tiles(count, tile), body, jnp.zeros((), states.dtype))


def _forward(  # noqa: PLR0917
    states: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    count: jax.Array,
    tile: int,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    def body(
        i: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        total, d_states, d_kernel, d_bias = carry
        x, y, weights = _tile(states, targets, count, i, tile)
        logits = x @ kernel + bias
        log_normaliser = jax.nn.logsumexp(logits, axis=-1)
        losses = jnp.where(weights, log_normaliser - _pick(logits, y), 0.0)
        probabilities = jnp.exp(logits - log_normaliser[:, None])
        is_target = jnp.arange(logits.shape[-1]) == y[:, None]
        d_logits = jnp.where(weights[:, None], probabilities - is_target, 0.0)
        return (
            total + losses.sum(),
            jax.lax.dynamic_update_slice_in_dim(d_states, d_logits @ kernel.T, i * tile, 0),
            d_kernel + x.T @ d_logits,
            d_bias + d_logits.sum(axis=0),
        )

    start = (
        jnp.zeros((), states.dtype),
        jnp.zeros_like(states),
        jnp.zeros_like(kernel),
        jnp.zeros_like(bias),
    )
    total, *gradients = jax.lax.fori_loop(0, _num_tiles(count, tile), body, start)
    return total, tuple(gradients)


def _backward(
    tile: int, gradients: tuple[jax.Array, jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array | None, ...]:
    del tile
    d_states, d_kernel, d_bias = (cotangent * g for g in gradients)
    return d_states, d_kernel, d_bias, None, None


_sum_cross_entropy.defvjp(_forward, _backward)


def _num_tiles(count: jax.Array, tile: int) -> jax.Array:
    return (count + tile - 1) // tile


def _tile(
    states: jax.Array, targets: jax.Array, count: jax.Array, i: jax.Array, tile: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows i * tile .. (i + 1) * tile - 1, their targets, and which of them count."""
    rows = i * tile + jnp.arange(tile)
    return (
        jax.lax.dynamic_slice_in_dim(states, i * tile, tile),
        jax.lax.dynamic_slice_in_dim(targets, i * tile, tile),
        rows < count,
    )


def _pick(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
