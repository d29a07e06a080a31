"""Next-item prediction by buckets: scalable cross entropy (arXiv 2409.18721).

Vectors drawn at random are the centres of buckets. Into each go the positions and the items whose
products with it are the largest, so that positions meet the items which they are likely to score
highly; only scores within buckets are computed. Of a position that is in several buckets the
largest loss counts (the closest to that of the whole softmax), one that is in none is left out.
"""

import math

import jax
import jax.numpy as jnp

from tssr_jax.losses.term import LossTerm
from tssr_jax.models.head import HeadWeights
from tssr_jax.models.precision import product

# Products of centres and classes, and scores of buckets, that are held at a time.
_SCORES_PER_TILE = 2**23
# Times that a position is in a bucket, on average (the paper's alpha; its beta is 1).
_BUCKETS_OF_A_POSITION = 2


@jax.named_scope("next_item")
def scalable_next_item_loss(
    fused: jax.Array,
    weights: HeadWeights,
    labels: jax.Array,
    counted: jax.Array,
    key: jax.Array,
    *,
    items_per_bucket: int,
    exclude_padding_class: bool,
    compute_dtype: str = "float32",
) -> LossTerm:
    """Approximate cross entropy of the labels, summed over counted positions that are in a bucket.

    There are as many buckets as positions in each. With several devices each one makes buckets of
    its own positions, so that the approximation is another one on another number of devices.

    Args:
      fused: [batch, length, d_model].
      weights: of all classes.
      labels: int [batch, length]; read where `counted` is True.
      counted: bool [batch, length].
      key: from which the centres are drawn.
      items_per_bucket: of the classes; with all of them the loss is that of the whole softmax.
      exclude_padding_class: class 0 does not compete.
      compute_dtype: of the inputs of products.
    """
    states, counts = fused.reshape(-1, fused.shape[-1]), counted.reshape(-1)
    y = jnp.where(counts, labels.reshape(-1), 0)
    kernel, bias = weights
    if exclude_padding_class:
        bias = bias.at[0].set(-jnp.inf)
    number = min(y.size, math.ceil(math.sqrt(_BUCKETS_OF_A_POSITION * y.size)))
    centres = _centres(states, counts, number, key)
    positions = _largest(centres, states.T, jnp.where(counts, 0.0, -jnp.inf), number)
    competes = jnp.where(bias > -jnp.inf, 0.0, -jnp.inf)
    items = _largest(centres, kernel, competes, min(items_per_bucket, bias.size))
    own = (states * jnp.take(kernel, y, axis=1).T).sum(axis=1)
    own += jnp.where(counts, bias[y], 0.0)
    columns = jnp.take(kernel, items, axis=1)  # [d_model, buckets, items]

    @jax.checkpoint
    def losses(bucket: tuple[jax.Array, ...]) -> jax.Array:
        x, own_x, target, columns, bias, classes = bucket
        scores = product(x, columns, compute_dtype) + bias
        scores = jnp.where(classes == target[:, None], -jnp.inf, scores)
        return jax.nn.logsumexp(jnp.c_[scores, own_x], axis=1) - own_x

    buckets = (
        states[positions], own[positions], y[positions], jnp.moveaxis(columns, 0, 1),
        bias[items], items,
    )  # fmt: skip
    size = max(1, _SCORES_PER_TILE // (number * items.shape[1]))
    found = jax.lax.map(losses, buckets, batch_size=min(size, number))
    largest = jnp.full(y.shape, -jnp.inf).at[positions].max(found)
    used = counts & (largest > -jnp.inf)
    return LossTerm(jnp.where(used, largest, 0.0).sum(), used.sum().astype(jnp.float32))


def _centres(states: jax.Array, counts: jax.Array, number: int, key: jax.Array) -> jax.Array:
    """Random mixtures of the states that count: [number, d_model]."""
    mixture = jax.random.normal(key, (number, counts.size)) * counts
    return jax.lax.stop_gradient(mixture @ states)


def _largest(centres: jax.Array, vectors: jax.Array, mask: jax.Array, number: int) -> jax.Array:
    """For each centre the vectors with the largest products with it.

    Args:
      centres: [centres, d_model].
      vectors: [d_model, vectors].
      mask: [vectors], added to the products.
      number: how many.

    Returns:
      int32 [centres, number].
    """
    vectors = jax.lax.stop_gradient(vectors)

    def find(centre: jax.Array) -> jax.Array:
        return jax.lax.top_k(centre @ vectors + mask, number)[1]

    size = max(1, _SCORES_PER_TILE // mask.size)
    return jax.lax.map(find, centres, batch_size=min(size, centres.shape[0]))
