"""A stack of encoder blocks, of which one is compiled.

Blocks of a stack are alike but for their parameters. Written out one after the other, each would be
compiled by itself, forward and backward; in a loop over their parameters, one is.
"""

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from tssr_jax.models.blocks import EncoderBlock
from tssr_jax.models.dropout import Dropout


class Stack(nn.Module):
    """`num_layers` blocks, parameters `layer_0`, `layer_1`, ...; the identity when there are none.

    Attributes:
      num_layers: blocks.
      num_heads: see `EncoderBlock`.
      d_ffn: the same.
      dropout: the same.
      compute_dtype: the same.
    """

    num_layers: int
    num_heads: int
    d_ffn: int
    dropout: Dropout
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, other: jax.Array | None, mask: jax.Array, *, deterministic: bool
    ) -> jax.Array:
        """Maps [batch, length, d_model] to the same shape.

        Args:
          x: what goes in.
          other: what every block attends to; None is the block's own input.
          mask: see `EncoderBlock`.
          deterministic: whether dropout is off.
        """
        settings = (self.num_heads, self.d_ffn, self.dropout, self.compute_dtype)
        if self.is_initializing() or self.num_layers < 2:
            for i in range(self.num_layers):
                block = EncoderBlock(*settings, name=f"layer_{i}")
                x = block(x, x if other is None else other, mask, deterministic=deterministic)
            return x
        alone = EncoderBlock(*settings, parent=None)
        own = self.variables["params"]
        layers = [own[f"layer_{i}"] for i in range(self.num_layers)]
        keys = None
        if not deterministic and self.dropout.rate:
            keys = jax.random.split(self.make_rng("dropout"), self.num_layers)

        def run(x: jax.Array, layer: tuple[Mapping[str, Any], Any]) -> tuple[jax.Array, None]:
            params, key = layer
            y = alone.apply(
                {"params": params},
                x,
                x if other is None else other,
                mask,
                deterministic=deterministic,
                rngs=None if key is None else {"dropout": key},
            )
            return cast(jax.Array, y), None

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        return jax.lax.scan(run, x, (stacked, keys))[0]
