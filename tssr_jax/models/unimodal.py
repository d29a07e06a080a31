"""Unimodal encoder: causal self-attention over one stream (SPEC, model step 2)."""

import jax
from flax import linen as nn

from tssr_jax.models.blocks import EncoderBlock
from tssr_jax.models.dropout import Dropout


class UnimodalEncoder(nn.Module):
    """A stack of `num_layers` self-attention blocks; the identity when there are none."""

    num_layers: int
    num_heads: int
    d_ffn: int
    dropout: Dropout
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, deterministic: bool) -> jax.Array:
        """Maps [batch, length, d_model] to the same shape; `mask` as in `EncoderBlock`."""
        for i in range(self.num_layers):
            block = EncoderBlock(
                self.num_heads, self.d_ffn, self.dropout, self.compute_dtype, name=f"layer_{i}"
            )
            x = block(x, x, mask, deterministic=deterministic)
        return x
