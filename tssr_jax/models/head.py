"""The prediction head: scores of all classes of the catalogue (SPEC, model step 6)."""

import jax
from flax import linen as nn

from tssr_jax.models import initializers
from tssr_jax.models.precision import product


class Head(nn.Module):
    """`x @ kernel + bias`. The loss reads its parameters and does the same in tiles.

    Attributes:
      num_classes: classes that this device holds.
      compute_dtype: of the product's inputs; scores are float32 (fewer digits would make ties).
    """

    num_classes: int
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., d_model] to [..., num_classes]."""
        kernel = self.param("kernel", initializers.dense_kernel, (x.shape[-1], self.num_classes))
        bias = self.param("bias", initializers.dense_bias, (self.num_classes,))
        return product(x, kernel, self.compute_dtype) + bias
