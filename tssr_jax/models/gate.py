"""What mixes the two streams: the gate (docs/method.md, step 5), or simpler ways."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from tssr_jax.models import initializers
from tssr_jax.models.precision import product

# "experts" has the gate as one of three, see `models.experts`.
MIXINGS = ("gate", "experts", "sum", "concatenation")


class Gate(nn.Module):
    """`g = sigmoid(W [F_id, F_con] + b)`, `F = g * F_id + (1 - g) * F_con`, element-wise."""

    compute_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, id_state: jax.Array, content_state: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mixes two states of shape [batch, length, d_model].

        Returns:
          The gate (weight of the id stream, in (0, 1)) and the fused state, both
          [batch, length, d_model].
        """
        d_model = id_state.shape[-1]
        kernel = self.param("kernel", initializers.dense_kernel, (2 * d_model, d_model))
        bias = self.param("bias", initializers.dense_bias, (d_model,))
        states = jnp.concatenate([id_state, content_state], axis=-1)
        gate = nn.sigmoid(product(states, kernel, self.compute_dtype) + bias)
        return gate, gate * id_state + (1.0 - gate) * content_state


class Concatenation(nn.Module):
    """`F = W [F_id, F_con] + b`: as many parameters as the gate, but the states are not kept."""

    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, id_state: jax.Array, content_state: jax.Array) -> jax.Array:
        """Mixes two states of shape [batch, length, d_model] to one."""
        d_model = id_state.shape[-1]
        kernel = self.param("kernel", initializers.dense_kernel, (2 * d_model, d_model))
        bias = self.param("bias", initializers.dense_bias, (d_model,))
        states = jnp.concatenate([id_state, content_state], axis=-1)
        return product(states, kernel, self.compute_dtype) + bias
