"""Content stream from frozen features: a precomputed table and what projects its rows."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from tssr_jax.catalogue import Catalogue
from tssr_jax.models import initializers
from tssr_jax.models.head import SMALLEST
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
    def __call__(self, item_sequence: jax.Array | None, item_features: ItemFeatures) -> jax.Array:
        """Embeds the content of each position, or of each class.

        Args:
          item_sequence: int [batch, length]; padding reads feature row 0, or zeros. None asks for
            all classes that this device holds, in their order.
          item_features: the table; items that `DistinctFeatures` lack read zeros.

        Returns:
          [batch, length, d_model]; [shard_classes, d_model] of all classes.

        Raises:
          ValueError: if all classes are asked for, but only features of some are there.
        """
        if isinstance(item_features, DistinctFeatures):
            if item_sequence is None:
                raise ValueError("features of a batch's items are not those of all classes")
            # The first row is that of padding and of items that are not among them.
            ids, vectors = item_features
            table = jnp.concatenate([jnp.zeros_like(vectors[:1]), vectors])
            place = jnp.minimum(jnp.searchsorted(ids, item_sequence), ids.size - 1)
            return self._rows(table, jnp.where(ids[place] == item_sequence, 1 + place, 0))
        if item_sequence is None:
            return self._project(item_features)
        return self.catalogue.lookup(partial(self._rows, item_features), item_sequence)

    def _rows(self, table: jax.Array, place: jax.Array) -> jax.Array:
        """Vectors of places, int [...], in the table: [..., d_model]."""
        # Gather and projection commute: do first whichever leaves fewer rows to multiply.
        # (A program that is exported for any batch size has no such number.)
        if isinstance(place.size, int) and table.shape[0] < place.size:
            return self._project(table)[place]
        return self._project(table[place])

    def _project(self, features: jax.Array) -> jax.Array:
        """[..., feature_dim] -> [..., d_model]."""
        feature_dim = features.shape[-1]
        init = initializers.pytorch_dense(feature_dim)
        kernel = self.param("kernel", init, (feature_dim, self.d_model))
        bias = self.param("bias", init, (self.d_model,))
        nothing = None
        if self.no_content_vector:
            nothing = self.param("no_content", init, (self.d_model,))
        vectors = product(features, kernel, self.compute_dtype) + bias
        squares = jnp.sum(features * features, axis=-1, keepdims=True)
        if self.hidden:
            # Encoders give vectors of norm 1 or of any other: here their entries are about 1.
            scale = jnp.sqrt(feature_dim / jnp.maximum(squares, SMALLEST))
            vectors += self._through_hidden_layer(features, scale)
        return vectors if nothing is None else jnp.where(squares > 0, vectors, nothing)

    def _through_hidden_layer(self, features: jax.Array, scale: jax.Array) -> jax.Array:
        """[..., feature_dim], and what they are multiplied by, [..., 1] -> [..., d_model]."""
        init = initializers.pytorch_dense(features.shape[-1])
        kernel = self.param("hidden_kernel", init, (features.shape[-1], self.hidden))
        bias = self.param("hidden_bias", init, (self.hidden,))
        output = self.param(
            "hidden_output", initializers.pytorch_dense(self.hidden), (self.hidden, self.d_model)
        )
        inner = product(features, kernel, self.compute_dtype) * scale + bias
        return product(nn.gelu(inner), output, self.compute_dtype)
