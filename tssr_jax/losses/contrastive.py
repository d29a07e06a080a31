"""Hierarchical contrasting: user- and item-grained InfoNCE (docs/reference/method.md, step 3)."""

import jax
import jax.numpy as jnp

from tssr_jax.losses.base import LossTerm
from tssr_jax.losses.info_nce import Keys, info_nce
from tssr_jax.parallel.collectives import Axis


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


@jax.named_scope("contrast")
def user_contrast(
    pooled: jax.Array,
    other_pooled: jax.Array,
    row_mask: jax.Array | None = None,
    *,
    temperature: float = 0.2,
    negatives: str = "all_gather",
    axis: Axis = None,
) -> LossTerm:
    """User-grained InfoNCE: a user's two representations against the batch's other users.

        loss = user_contrast(pooled_text, pooled_id).mean()

    `cos(pooled_i, other_j) / temperature`, target j = i (docs/reference/method.md, step 3).

    Args:
      pooled: [batch, d_model], the anchors' stream.
      other_pooled: [batch, d_model], the other stream.
      row_mask: bool [batch], False for rows that only fill the batch; None where none do.
      temperature: divides the cosine.
      negatives: how negatives of other devices are reached, see `info_nce`.
      axis: the device axis that the batch is cut along.
    """
    if row_mask is None:
        row_mask = jnp.ones(pooled.shape[0], bool)
    queries, keys = _unit(pooled) / temperature, _unit(other_pooled)
    mask = row_mask[None]
    own = Keys(keys[None], mask, None)
    return info_nce(queries[None], own, mask, negatives, axis)


@jax.named_scope("contrast")
def item_contrast(
    states: jax.Array,
    embeddings: jax.Array,
    item_sequence: jax.Array,
    *,
    valid_positions_only: bool = True,
    mask_false_negatives: bool = True,
    negatives: str = "all_gather",
    axis: Axis = None,
) -> LossTerm:
    """Item-grained InfoNCE: cross-modality next-item prediction among the items of the batch.

        loss = item_contrast(outputs.content.encoded, outputs.id.input_embedding, items).mean()

    The state of one stream at t is contrasted with the other stream's input embedding of the
    item at t + 1; the other users' items at t + 1 are the negatives. Raw dot products.

    Args:
      states: [batch, length, d_model], a unimodal encoder's output.
      embeddings: [batch, length, d_model], the other stream's embeddings without positions.
      item_sequence: int [batch, length], 0 is padding.
      valid_positions_only: an anchor needs an item at t, too (in the reference the last padding
        position is an anchor).
      mask_false_negatives: the anchor's own target item in another row is no negative.
      negatives: how negatives of other devices are reached, see `info_nce`.
      axis: the device axis that the batch is cut along.
    """
    targets = item_sequence[:, 1:].T  # [length - 1, batch]
    anchors = present = targets > 0
    if valid_positions_only:
        anchors = anchors & (item_sequence[:, :-1].T > 0)
    keys = Keys(
        embeddings[:, 1:].swapaxes(0, 1), present, targets if mask_false_negatives else None
    )
    queries = states[:, :-1].swapaxes(0, 1)
    return info_nce(queries, keys, anchors, negatives, axis)


def _unit(x: jax.Array) -> jax.Array:
    # Square root of a clamped sum: its gradient is finite for a zero vector.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-16))
