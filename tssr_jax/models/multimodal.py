"""Multimodal encoder: one stream asks the other by cross-attention (SPEC, model step 4)."""

import jax
from flax import linen as nn

from tssr_jax.models.blocks import EncoderBlock
from tssr_jax.models.dropout import Dropout


class MultimodalEncoder(nn.Module):
    """A stack of `num_layers` cross-attention blocks; the identity when there are none.

    Every layer attends to the same `other`: the other stream's unimodal output, never its
    multimodal one.
    """

    num_layers: int
    num_heads: int
    d_ffn: int
    dropout: Dropout
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, other: jax.Array, mask: jax.Array, *, deterministic: bool
    ) -> jax.Array:
        """Maps x [batch, length, d_model] to the same shape, with `other` of that shape too."""
        for i in range(self.num_layers):
            block = EncoderBlock(
                self.num_heads, self.d_ffn, self.dropout, self.compute_dtype, name=f"layer_{i}"
            )
            x = block(x, other, mask, deterministic=deterministic)
        return x
