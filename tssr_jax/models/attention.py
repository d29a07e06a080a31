"""Multi-head attention and the mask of a left-padded sequence."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from tssr_jax.models import initializers

# Forbidden scores are SET to this finite value: a query with no allowed key (a padding position)
# then attends uniformly to all positions instead of producing NaN.
MASKED_SCORE = -1e9


def causal_padding_mask(item_sequence: jax.Array) -> jax.Array:
    """Position t sees the positions s <= t that hold an item.

    Args:
      item_sequence: int [batch, length], 0 is padding.

    Returns:
      bool [batch, length (query), length (key)].
    """
    length = item_sequence.shape[1]
    causal = jnp.tril(jnp.ones((length, length), dtype=bool))
    return causal[None, :, :] & (item_sequence > 0)[:, None, :]


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with separate query, key, value and output projections.

    Head h owns the features h * d_head .. (h + 1) * d_head - 1 of each projection.

    Attributes:
      num_heads: number of heads; must divide d_model.
      dropout_rate: dropout on the attention weights.
    """

    num_heads: int
    dropout_rate: float

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
          [batch, length, d_model].
        """
        d_model = query.shape[-1]
        d_head = d_model // self.num_heads

        def project(name: str, x: jax.Array) -> jax.Array:
            return nn.Dense(
                d_model,
                kernel_init=initializers.dense_kernel,
                bias_init=initializers.dense_bias,
                name=name,
            )(x)

        def heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:-1], self.num_heads, d_head)

        q, k, v = (
            heads(project(name, x))
            for name, x in (("query", query), ("key", key_value), ("value", key_value))
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(d_head).astype(q.dtype)
        scores = jnp.where(mask[:, None, :, :], scores, MASKED_SCORE)
        weights = jax.nn.softmax(scores, axis=-1)
        weights = nn.Dropout(self.dropout_rate)(weights, deterministic=deterministic)
        attended = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return project("out", attended.reshape(query.shape))
