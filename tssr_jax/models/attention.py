"""Multi-head attention and the mask of a left-padded sequence."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from tssr_jax.models.layers import Dense, Dropout

# Forbidden scores are SET to this finite value: a query with no allowed key (a padding position)
# then attends uniformly to all positions instead of producing NaN.
MASKED_SCORE = -1e9
# Collection and name of the attention weights, of each head [batch, length, key_length].
WEIGHTS = ("intermediates", "weights")


def causal_padding_mask(item_sequence: jax.Array) -> jax.Array:
    """Position t sees the positions s <= t that hold an item.

    Args:
      item_sequence: int [batch, length], 0 is padding.

    Returns:
      bool [batch, length (query), length (key)].
    """
    place = jnp.arange(item_sequence.shape[1])
    causal = place[:, None] >= place
    return causal[None, :, :] & (item_sequence > 0)[:, None, :]


def packed_mask(segments: jax.Array) -> jax.Array:
    """Position t sees the positions s <= t of its own window.

    Args:
      segments: int [rows, length], which window a token is of; 0 where there is none.

    Returns:
      bool [rows, length (query), length (key)].
    """
    place = jnp.arange(segments.shape[1])
    causal = place[:, None] >= place
    same = segments[:, :, None] == segments[:, None, :]
    return causal[None, :, :] & same & (segments > 0)[:, None, :]


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with separate query, key, value and output projections.

    Head h owns the features h * d_head .. (h + 1) * d_head - 1 of each projection.

    Attributes:
      num_heads: number of heads; must divide d_model.
      dropout: of the attention weights.
      compute_dtype: of products and of their results; the softmax is float32.
    """

    num_heads: int
    dropout: Dropout
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, query: jax.Array, key_value: jax.Array, mask: jax.Array, *, deterministic: bool
    ) -> jax.Array:
        """Attends from `query` to `key_value`.

        Args:
          query: [batch, length, d_model].
          key_value: [batch, key_length, d_model].
          mask: bool [batch, length, key_length], True where attention is allowed.
          deterministic: whether dropout is off.

        Returns:
          [batch, length, d_model], of `compute_dtype`.
        """
        d_model = query.shape[-1]
        d_head = d_model // self.num_heads

        dense = partial(Dense, d_model, dtype=self.compute_dtype)
        q, k, v = (
            checkpoint_name(dense(name=name)(states), "projected")
            for name, states in (("query", query), ("key", key_value), ("value", key_value))
        )
        q = q * d_head**-0.5
        # One head at a time: a head's features lie side by side, so nothing is transposed, and on
        # a processor this takes two thirds of the time of one product over all heads.
        attended = []
        for h in range(self.num_heads):
            features = slice(h * d_head, (h + 1) * d_head)
            scores = jnp.einsum(
                "bqd,bkd->bqk",
                q[..., features],
                k[..., features],
                preferred_element_type=jnp.float32,
            )
            weights = jax.nn.softmax(jnp.where(mask, scores, MASKED_SCORE), axis=-1)
            self.sow(*WEIGHTS, weights)  # kept where somebody asks for them
            weights = self.dropout(weights, deterministic=deterministic).astype(v.dtype)
            attended.append(jnp.einsum("bqk,bkd->bqd", weights, v[..., features]))
        heads = checkpoint_name(jnp.concatenate(attended, axis=-1), "attended")
        return checkpoint_name(dense(name="out")(heads), "sublayer")
