"""Content stream from frozen features: a precomputed table and one Dense layer."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from tssr_jax.catalogue import Catalogue
from tssr_jax.models import initializers
from tssr_jax.models.precision import product


class FrozenContent(nn.Module):
    """Projects rows of a fixed feature table to the model's width.

    Attributes:
      d_model: width of the model.
      catalogue: how the table's rows lie on the devices.
      no_content_vector: items without features (a row of zeros) get a learnt vector.
      compute_dtype: of the product's inputs.
    """

    d_model: int
    catalogue: Catalogue
    no_content_vector: bool = True
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, item_sequence: jax.Array, item_features: jax.Array) -> jax.Array:
        """Embeds the content of each position.

        Args:
          item_sequence: int [batch, length]; padding reads feature row 0.
          item_features: [shard_classes, feature_dim], not trained.

        Returns:
          [batch, length, d_model].
        """
        feature_dim = item_features.shape[-1]
        init = initializers.pytorch_dense(feature_dim)
        kernel = self.param("kernel", init, (feature_dim, self.d_model))
        bias = self.param("bias", init, (self.d_model,))
        nothing = (
            self.param("no_content", init, (self.d_model,)) if self.no_content_vector else None
        )

        def project(features: jax.Array) -> jax.Array:
            vectors = product(features, kernel, self.compute_dtype) + bias
            if nothing is None:
                return vectors
            return jnp.where(jnp.any(features != 0, axis=-1, keepdims=True), vectors, nothing)

        def rows_of(place: jax.Array) -> jax.Array:
            # Gather and projection commute: do first whichever leaves fewer rows to multiply.
            if item_features.shape[0] < place.size:
                return project(item_features)[place]
            return project(item_features[place])

        return self.catalogue.lookup(rows_of, item_sequence)
