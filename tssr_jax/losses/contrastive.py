"""Hierarchical contrasting: user- and item-grained InfoNCE (SPEC, model step 3)."""

import jax
import jax.numpy as jnp

from tssr_jax.losses.term import LossTerm

# A pair that must not compete gets this score; finite, so that a row without any allowed
# column stays finite too.
EXCLUDED_SCORE = -1e9


def pool(states: jax.Array, item_sequence: jax.Array, *, valid_positions: bool) -> jax.Array:
    """Mean of the states of a sequence, [batch, length, d_model] -> [batch, d_model].

    Args:
      states: outputs of a unimodal encoder.
      item_sequence: int [batch, length], 0 is padding.
      valid_positions: average over the positions that hold an item; if False over all of them
        (the reference's habit).
    """
    if not valid_positions:
        return states.mean(axis=1)
    valid = (item_sequence > 0)[:, :, None].astype(states.dtype)
    return (states * valid).sum(axis=1) / jnp.maximum(valid.sum(axis=1), 1.0)


def info_nce(scores: jax.Array, allowed: jax.Array, anchors: jax.Array) -> LossTerm:
    """Cross entropy of each row with the diagonal as the target.

    Args:
      scores: [..., rows, columns], square in the last two axes.
      allowed: bool, same shape: the columns that compete.
      anchors: bool [..., rows]: the rows that count.
    """
    positives = jnp.diagonal(scores, axis1=-2, axis2=-1)
    losses = jax.nn.logsumexp(jnp.where(allowed, scores, EXCLUDED_SCORE), axis=-1) - positives
    return LossTerm(jnp.where(anchors, losses, 0.0).sum(), anchors.sum().astype(scores.dtype))


def user_grained(
    pooled: jax.Array, other_pooled: jax.Array, row_mask: jax.Array, *, temperature: float
) -> LossTerm:
    """Contrasts the two representations of a user with those of the batch's other users.

    `cos(pooled_i, other_j) / temperature`, target j = i.

    Args:
      pooled: [batch, d_model], the anchors' stream.
      other_pooled: [batch, d_model], the other stream.
      row_mask: bool [batch], False for rows that only fill the batch.
      temperature: divides the cosine.
    """
    scores = _unit(pooled) @ _unit(other_pooled).T / temperature
    allowed = jnp.broadcast_to(row_mask[None, :], scores.shape)
    return info_nce(scores, allowed, row_mask)


def item_grained(
    states: jax.Array,
    embeddings: jax.Array,
    item_sequence: jax.Array,
    *,
    valid_positions_only: bool,
    mask_false_negatives: bool,
) -> LossTerm:
    """Cross-modality next-item prediction among the items of the batch at the same position.

    The state of one stream at t is contrasted with the other stream's input embedding of the
    item at t + 1; the other users' items at t + 1 are the negatives. Raw dot products.

    Args:
      states: [batch, length, d_model], a unimodal encoder's output.
      embeddings: [batch, length, d_model], the other stream's embeddings without positions.
      item_sequence: int [batch, length], 0 is padding.
      valid_positions_only: an anchor needs an item at t, too (in the reference the last padding
        position is an anchor).
      mask_false_negatives: the anchor's own target item in another row is no negative.
    """
    targets = item_sequence[:, 1:].T  # [length - 1, batch]
    scores = jnp.einsum("itd,jtd->tij", states[:, :-1], embeddings[:, 1:])
    anchors = targets > 0
    allowed = anchors[:, None, :]
    if mask_false_negatives:
        same_item = targets[:, :, None] == targets[:, None, :]
        own = jnp.eye(targets.shape[1], dtype=bool)
        allowed = allowed & (~same_item | own)
    if valid_positions_only:
        anchors = anchors & (item_sequence[:, :-1].T > 0)
    return info_nce(scores, jnp.broadcast_to(allowed, scores.shape), anchors)


def _unit(x: jax.Array) -> jax.Array:
    # Square root of a clamped sum: its gradient is finite for a zero vector.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-16))
