"""Next-item prediction against drawn classes: sampled softmax (Bengio and Senécal, 2008).

The estimate of the softmax's normaliser sums the target, once, and the drawn classes, each divided
by its expected number of draws ("logQ"). A drawn class that is the position's target is left out.
So the normaliser (not its logarithm) is unbiased for any probabilities; the target's own score
needs no correction (cf. arXiv 2507.09331).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tssr_jax.losses.base import LossTerm
from tssr_jax.losses.drawn_items import DrawnItems
from tssr_jax.losses.next_item import counted_first
from tssr_jax.models.head import HeadWeights
from tssr_jax.models.layers import product
from tssr_jax.parallel.catalogue import Catalogue

SCORES_PER_TILE = 2**21


@jax.named_scope("next_item")
def sampled_next_item_loss(
    fused: jax.Array,
    weights: HeadWeights,
    labels: jax.Array,
    counted: jax.Array,
    negatives: DrawnItems,
    *,
    importance: jax.Array | None = None,
    catalogue: Catalogue,
    compute_dtype: str = "float32",
) -> LossTerm:
    """Estimated cross entropy of the labels, summed over this device's counted positions.

    Args:
      fused: [batch, length, d_model].
      weights: head weights of this device's classes; read at labels and negatives only.
      labels: int [batch, length]; read where `counted` is True.
      counted: bool [batch, length].
      negatives: drawn classes; never the padding class.
      importance: see `next_item_loss`.
      catalogue: how the classes lie on the devices.
      compute_dtype: of the inputs of the products with the negatives.
    """
    d_model = fused.shape[-1]
    order, count = counted_first(counted)
    states, targets = fused.reshape(-1, d_model)[order], labels.reshape(-1)[order]

    def columns(classes: jax.Array) -> jax.Array:
        """[classes, d_model + 1]: kernel and bias."""
        return jnp.concatenate(
            [jnp.take(weights.kernel, classes, axis=1).T, weights.bias[classes][:, None]], axis=1
        )

    own = catalogue.lookup(columns, targets)
    own_scores = (states * own[:, :d_model]).sum(axis=1) + own[:, d_model]
    others = catalogue.lookup_shared(columns, negatives.classes)
    total = _sum_losses(
        states,
        own_scores,
        others[:, :d_model],
        others[:, d_model] - negatives.log_expected,
        _Rows(
            targets,
            negatives.classes,
            count,
            None if importance is None else importance.reshape(-1)[order],
        ),
        compute_dtype,
    )
    weight = count if importance is None else jnp.where(counted, importance, 0.0).sum()
    return LossTerm(total, weight.astype(total.dtype))


class _Rows(NamedTuple):
    """Inputs without a gradient.

    Attributes:
      targets: int [rows].
      drawn: drawn classes.
      number: how many rows are real.
      importance: [rows], what each loss is multiplied by; None is 1.
    """

    targets: jax.Array
    drawn: jax.Array
    number: jax.Array
    importance: jax.Array | None


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _sum_losses(  # noqa: PLR0917
    states: jax.Array,
    own: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    rows: _Rows,
    compute_dtype: str,
) -> jax.Array:
    """Sum over the first `rows.number` rows of states [rows, d_model]; kernel [drawn, d_model]."""
    return _forward(states, own, kernel, bias, rows, compute_dtype)[0]


def _forward(  # noqa: PLR0917
    states: jax.Array,
    own: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    rows: _Rows,
    compute_dtype: str,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The sum, and its gradients by the first four arguments, computed tile by tile."""
    number = states.shape[0]
    size = min(number, max(1, SCORES_PER_TILE // bias.size))

    def body(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        total, d_states, d_own, d_kernel, d_bias = carry
        start = jnp.minimum(i * size, number - size)  # the last tile overlaps the one before
        place = start + jnp.arange(size)
        fresh = (place >= i * size) & (place < rows.number)

        def cut(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, start, size)

        def put(whole: jax.Array, part: jax.Array) -> jax.Array:
            part = jnp.where(fresh.reshape(-1, *(1,) * (part.ndim - 1)), part, cut(whole))
            return jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0)

        x, own_x = cut(states), cut(own)
        scores = product(x, kernel.T, compute_dtype) + bias
        scores = jnp.where(rows.drawn == cut(rows.targets)[:, None], -jnp.inf, scores)
        log_normaliser = jax.nn.logsumexp(jnp.concatenate([scores, own_x[:, None]], axis=1), axis=1)
        losses, d_own_x = log_normaliser - own_x, jnp.exp(own_x - log_normaliser) - 1.0
        d_scores = jnp.exp(scores - log_normaliser[:, None])
        if rows.importance is not None:
            times = cut(rows.importance)
            losses, d_own_x, d_scores = losses * times, d_own_x * times, d_scores * times[:, None]
        d_scores = jnp.where(fresh[:, None], d_scores, 0.0)
        return (
            total + jnp.where(fresh, losses, 0.0).sum(),
            put(d_states, product(d_scores, kernel, compute_dtype)),
            put(d_own, d_own_x),
            d_kernel + product(d_scores.T, x, compute_dtype),
            d_bias + d_scores.sum(axis=0),
        )

    carry = jnp.zeros(()), *(jnp.zeros_like(x) for x in (states, own, kernel, bias))
    total, *gradients = jax.lax.fori_loop(0, -(-rows.number // size), body, carry)
    return total, tuple(gradients)


def _backward(
    compute_dtype: str, gradients: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array | None, ...]:
    del compute_dtype
    return *(cotangent * gradient for gradient in gradients), None


_sum_losses.defvjp(_forward, _backward)
