"""The residual block that every encoder of the model is a stack of."""

from collections.abc import Callable
from functools import partial

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from tssr_jax.models.attention import MultiHeadAttention
from tssr_jax.models.dense import Dense
from tssr_jax.models.dropout import Dropout

LAYER_NORM_EPSILON = 1e-5
# Where a block normalises: what a sublayer's sum gives, or what a sublayer reads.
NORMS = ("post", "pre")
# Names of what is worth keeping for the gradient: results of products with parameters.
SAVED = ("projected", "attended", "sublayer", "hidden")


def layer_norm(name: str, feature_axes: int | tuple[int, ...] = -1) -> nn.LayerNorm:
    """Layer norm with biased variance, computed in two passes (exact to float32 rounding).

    Args:
      name: of its parameters.
      feature_axes: that scale and bias have.
    """
    return nn.LayerNorm(
        epsilon=LAYER_NORM_EPSILON,
        use_fast_variance=False,
        feature_axes=feature_axes,
        name=name,
    )


_Norm = Callable[[jax.Array], jax.Array]


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
    """Attention block with learnt residual scalars a and f (docs/method.md, step 2).

    Post-norm, as in the paper: `x1 = LN(x + a * drop(Attn(x)))`, `y = LN(x1 + f * drop(FFN(x1)))`.
    Pre-norm (arXiv 2002.04745): `x1 = x + a * drop(Attn(LN(x)))`, `y = x1 + f * drop(FFN(LN(x1)))`;
    whoever stacks blocks then normalises what the last one gives.

    Attributes:
      num_heads: attention heads.
      d_ffn: width of the feed-forward layer.
      dropout: on attention weights, on the FFN's output and on each sublayer's output.
      compute_dtype: of the sublayers' products; residual streams and norms are float32.
      residual_init: initial value of a and f. Near 0 blocks start as (almost) the identity, as in
        ReZero (arXiv 2003.04887).
      norm: one of `NORMS`.
    """

    num_heads: int
    d_ffn: int
    dropout: Dropout
    compute_dtype: str = "float32"
    residual_init: float = 1e-8
    norm: str = "post"

    @nn.compact
    def __call__(
        self, x: jax.Array, key_value: jax.Array, mask: jax.Array, *, deterministic: bool
    ) -> jax.Array:
        """Applies the block; `key_value is x` makes it self-attention.

        Args:
          x: [batch, length, d_model], the queries and the residual stream.
          key_value: [batch, key_length, d_model], not normalised with pre-norm, just as x.
          mask: bool [batch, length, key_length].
          deterministic: whether dropout is off.

        Returns:
          [batch, length, d_model].
        """
        attend = MultiHeadAttention(
            self.num_heads, self.dropout, self.compute_dtype, name="attention"
        )
        transform = FeedForward(self.d_ffn, self.dropout, self.compute_dtype, name="ffn")
        before, after = self._norms("attention")
        attended = attend(before(x), before(key_value), mask, deterministic=deterministic)
        x = after(self._add("attention", x, attended, deterministic))
        before, after = self._norms("ffn")
        transformed = transform(before(x), deterministic=deterministic)
        return after(self._add("ffn", x, transformed, deterministic))

    def _norms(self, sublayer: str) -> tuple[_Norm, _Norm]:
        """What normalises a sublayer's input, and its sum; one of the two does nothing."""
        norm = layer_norm(f"{sublayer}_norm")
        return (norm, _as_it_is) if self.norm == "pre" else (_as_it_is, norm)

    def _add(
        self, sublayer: str, x: jax.Array, update: jax.Array, deterministic: bool
    ) -> jax.Array:
        start = nn.initializers.constant(self.residual_init)
        scale = self.param(f"{sublayer}_residual_scale", start, ())
        return x + scale * self.dropout(update, deterministic=deterministic)


def _as_it_is(x: jax.Array) -> jax.Array:
    return x
