"""The Dense layer of every block: the reference's initial values, and fast on a processor."""

import jax
from flax import linen as nn

from tssr_jax.models import initializers
from tssr_jax.models.initializers import Initializer


class Dense(nn.Dense):
    """`flax.linen.Dense` that multiplies [rows, features] matrices whatever the input's rank.

    XLA's gradient of a product with two leading axes takes up to twice as long on a processor as
    that of the same product with them merged.
    """

    kernel_init: Initializer = initializers.dense_kernel
    bias_init: Initializer = initializers.dense_bias

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [..., in_features] to [..., features]."""
        outputs = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return outputs.reshape(*inputs.shape[:-1], self.features)
