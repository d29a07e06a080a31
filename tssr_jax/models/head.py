"""The prediction head: scores of all classes (docs/reference/method.md, step 6)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from tssr_jax.models import initializers
from tssr_jax.models.layers import product

# Below this squared norm a vector counts as no vector.
SMALLEST = 1e-12


class HeadWeights(NamedTuple):
    """Weights that score the classes: `x @ kernel + bias`.

    Attributes:
      kernel: [d_model, shard_classes].
      bias: [shard_classes].
    """

    kernel: jax.Array
    bias: jax.Array

    def score(self, x: jax.Array, compute_dtype: str) -> jax.Array:
        """[..., d_model] -> [..., shard_classes]; float32 (fewer digits would make ties)."""
        return product(x, self.kernel, compute_dtype) + self.bias


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
    """Vectors along an axis at L2 norm 1; zeros stay zeros, with a gradient."""
    squares = jnp.sum(x * x, axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, SMALLEST))


class Head(nn.Module):
    """Weights and bias of each class.

    Attributes:
      num_classes: classes that this device holds.
      d_model: width of the scored states.
      bias_only: the kernel is zero, and not a parameter.
    """

    num_classes: int
    d_model: int
    bias_only: bool = False

    @nn.compact
    def __call__(self) -> HeadWeights:
        """The parameters; the loss reads them in tiles."""
        shape = (self.d_model, self.num_classes)
        if self.bias_only:
            kernel = jnp.zeros(shape)
        else:
            kernel = self.param("kernel", initializers.dense_kernel, shape)
        return HeadWeights(kernel, self.param("bias", initializers.dense_bias, shape[1:]))
