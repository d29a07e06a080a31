"""Content stream from frozen features: a precomputed table and what projects its rows."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from tssr_jax.catalogue import Catalogue
from tssr_jax.models import initializers
from tssr_jax.models.head import unit
from tssr_jax.models.precision import product


class DistinctFeatures(NamedTuple):
    """Features of the items of a batch that have content, and of no others.

    Attributes:
      ids: int [number], ascending, each item once.
      vectors: [number, feature_dim].
    """

    ids: jax.Array
    vectors: jax.Array


# Of all classes, [shard_classes, feature_dim]; or of those in the batch.
ItemFeatures = jax.Array | DistinctFeatures


class FrozenContent(nn.Module):
    """Projects rows of a feature table to the model's width.

    Attributes:
      d_model: width of the model.
      catalogue: how the table's rows lie on the devices.
      no_content_vector: items without features (a row of zeros) get a learnt vector.
      compute_dtype: of the products' inputs.
      hidden: width of a hidden layer, whose output is added to that of the one Dense layer of the
        paper; 0 is none. A linear map keeps what the encoder finds alike alike; items that people
        take one after the other are often not.
    """

    d_model: int
    catalogue: Catalogue
    no_content_vector: bool = True
    compute_dtype: str = "float32"
    hidden: int = 0

    @nn.compact
    def __call__(self, item_sequence: jax.Array, item_features: ItemFeatures) -> jax.Array:
        """Embeds the content of each position.

        Args:
          item_sequence: int [batch, length]; padding reads feature row 0, or zeros.
          item_features: the table; items that `DistinctFeatures` lack read zeros.

        Returns:
          [batch, length, d_model].
        """
        if isinstance(item_features, DistinctFeatures):
            # The first row is that of padding and of items that are not among them.
            ids, vectors = item_features
            table = jnp.concatenate([jnp.zeros_like(vectors[:1]), vectors])
            place = jnp.minimum(jnp.searchsorted(ids, item_sequence), ids.size - 1)
            return self._rows(table, jnp.where(ids[place] == item_sequence, 1 + place, 0))
        return self.catalogue.lookup(partial(self._rows, item_features), item_sequence)

    def _rows(self, table: jax.Array, place: jax.Array) -> jax.Array:
        """Vectors of places, int [...], in the table: [..., d_model]."""
        feature_dim = table.shape[-1]
        init = initializers.pytorch_dense(feature_dim)
        kernel = self.param("kernel", init, (feature_dim, self.d_model))
        bias = self.param("bias", init, (self.d_model,))
        nothing = None
        if self.no_content_vector:
            nothing = self.param("no_content", init, (self.d_model,))

        def project(features: jax.Array) -> jax.Array:
            vectors = product(features, kernel, self.compute_dtype) + bias
            if self.hidden:
                vectors += self._through_hidden_layer(features)
            if nothing is None:
                return vectors
            return jnp.where(jnp.any(features != 0, axis=-1, keepdims=True), vectors, nothing)

        # Gather and projection commute: do first whichever leaves fewer rows to multiply.
        # (A program that is exported for any batch size has no such number.)
        if isinstance(place.size, int) and table.shape[0] < place.size:
            return project(table)[place]
        return project(table[place])

    def _through_hidden_layer(self, features: jax.Array) -> jax.Array:
        """[..., feature_dim] -> [..., d_model]."""
        init = initializers.pytorch_dense(features.shape[-1])
        kernel = self.param("hidden_kernel", init, (features.shape[-1], self.hidden))
        bias = self.param("hidden_bias", init, (self.hidden,))
        output = self.param(
            "hidden_output", initializers.pytorch_dense(self.hidden), (self.hidden, self.d_model)
        )
        # Encoders give vectors of norm 1 or of any other: here their entries are about 1.
        entries = unit(features) * features.shape[-1] ** 0.5
        inner = product(entries, kernel, self.compute_dtype) + bias
        return product(nn.gelu(inner), output, self.compute_dtype)
