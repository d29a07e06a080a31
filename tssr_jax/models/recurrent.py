"""A recurrent encoder of one stream, GRU4Rec's (arXiv 1511.06939), to compare attention with."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from tssr_jax.models.blocks import layer_norm
from tssr_jax.models.encoder import Encoded
from tssr_jax.models.layers import Dense, Dropout


class RecurrentEncoder(nn.Module):
    """Layers of gated recurrent units over the items of a window, oldest first.

    Their input is normalised, since initial item vectors are small, and the last layer's output is
    projected, since states of a GRU are within +-1. On Amazon toys both together raise validation
    NDCG@10 after 7 epochs from 0.031 to 0.045.

    Attributes:
      num_layers: number of layers.
      dropout: dropout of each layer's input.
    """

    num_layers: int
    dropout: Dropout

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, key: jax.Array | None, *, last_only: bool = False
    ) -> Encoded:
        """Encodes the stream, as `StreamEncoders` would.

        Args:
          x: [1, batch, length, d_model].
          mask: bool [batch, length, length], whether a position may look at another. A state is
            passed on to the next position if that may look at the one before it.
          key: random key of dropout; None switches it off.
          last_only: return `crossed` at the last position only, [1, batch, 1, d_model].
        """
        back = jnp.diagonal(mask, offset=-1, axis1=1, axis2=2)
        goes_on = jnp.concatenate([jnp.zeros_like(mask[:, :1, 0]), back], axis=1)
        states = layer_norm("input_norm")(x[0])
        for layer in range(self.num_layers):
            states = self.dropout(states, deterministic=key is None)
            cell = nn.GRUCell(states.shape[-1], name=f"layer_{layer}")
            states = _run(cell, states, goes_on)
        encoded = Dense(states.shape[-1], name="projection")(states)[None]
        return Encoded(encoded, encoded[:, :, -1:] if last_only else encoded)


def _run(cell: nn.GRUCell, inputs: jax.Array, goes_on: jax.Array) -> jax.Array:
    """States [batch, length, d_model], reset to zero where `goes_on` [batch, length] is False."""

    def step(
        cell: nn.GRUCell, carry: jax.Array, now: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        x, goes_on = now
        return cell(jnp.where(goes_on[:, None], carry, 0.0), x)

    scan = nn.scan(
        step, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1
    )
    return scan(cell, jnp.zeros_like(inputs[:, 0]), (inputs, goes_on))[1]
