"""In which precision products are taken (`config.model.compute_dtype`).

Parameters, residual streams, layer norms, softmaxes, the gate's mixture and all losses are float32
whatever the precision; products of matrices take their inputs in it. Inside a sublayer, where
nothing is summed up over layers, activations are kept in it as well.
"""

import jax
import jax.numpy as jnp

COMPUTE_DTYPES = ("float32", "bfloat16")


def product(x: jax.Array, y: jax.Array, dtype: str) -> jax.Array:
    """`x @ y` of inputs rounded to `dtype`, summed and returned in float32."""
    return jnp.matmul(x.astype(dtype), y.astype(dtype), preferred_element_type=jnp.float32)
