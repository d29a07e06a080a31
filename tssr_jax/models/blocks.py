"""The residual block; every encoder of the model is a stack of them."""

from functools import partial

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from tssr_jax.models.attention import MultiHeadAttention
from tssr_jax.models.layers import Dense, Dropout

LAYER_NORM_EPSILON = 1e-5
# First value of a and f, as in the paper: blocks start as (almost) the identity, like those of
# ReZero (arXiv 2003.04887).
_RESIDUAL_INIT = 1e-8
# Names of activations that are kept for the gradient: results of matrix products.
SAVED = ("projected", "attended", "sublayer", "hidden")


def layer_norm(name: str) -> nn.LayerNorm:
    """Layer norm with biased variance, computed in two passes (exact to float32 rounding)."""
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, name=name)


class FeedForward(nn.Module):
    """d_model -> d_ffn -> d_model with the exact (erf) GELU; dropout on the output."""

    d_ffn: int
    dropout: Dropout
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        """Maps [..., d_model] to the same shape, of `compute_dtype`."""
        dense = partial(Dense, dtype=self.compute_dtype)
        hidden = checkpoint_name(dense(self.d_ffn, name="up")(x), "hidden")
        hidden = nn.gelu(hidden, approximate=False)
        output = checkpoint_name(dense(x.shape[-1], name="down")(hidden), "sublayer")
        return self.dropout(output, deterministic=deterministic)


class EncoderBlock(nn.Module):
    """Attention block with learnt residual scalars a and f (docs/reference/method.md, step 2).

    `x1 = LN(x + a * drop(Attn(x)))`, `y = LN(x1 + f * drop(FFN(x1)))`.

    Attributes:
      num_heads: attention heads.
      d_ffn: width of the feed-forward layer.
      dropout: on attention weights, on the FFN's output and on each sublayer's output.
      compute_dtype: of the sublayers' products; residual streams and norms are float32.
    """

    num_heads: int
    d_ffn: int
    dropout: Dropout
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, key_value: jax.Array, mask: jax.Array, *, deterministic: bool
    ) -> jax.Array:
        """Applies the block; `key_value is x` makes it self-attention.

        Args:
          x: [batch, length, d_model], the queries and the residual stream.
          key_value: [batch, key_length, d_model].
          mask: bool [batch, length, key_length].
          deterministic: whether dropout is off.

        Returns:
          [batch, length, d_model].
        """
        attend = MultiHeadAttention(
            self.num_heads, self.dropout, self.compute_dtype, name="attention"
        )
        transform = FeedForward(self.d_ffn, self.dropout, self.compute_dtype, name="ffn")
        attended = attend(x, key_value, mask, deterministic=deterministic)
        x = layer_norm("attention_norm")(self._add("attention", x, attended, deterministic))
        transformed = transform(x, deterministic=deterministic)
        return layer_norm("ffn_norm")(self._add("ffn", x, transformed, deterministic))

    def _add(
        self, sublayer: str, x: jax.Array, update: jax.Array, deterministic: bool
    ) -> jax.Array:
        start = nn.initializers.constant(_RESIDUAL_INIT)
        scale = self.param(f"{sublayer}_residual_scale", start, ())
        return x + scale * self.dropout(update, deterministic=deterministic)
