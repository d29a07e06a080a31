"""The content stream's input: an item's features, projected to the model's width."""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from tssr_jax.memory.scores import Memories, Neighbours
from tssr_jax.models import initializers
from tssr_jax.models.head import SMALLEST
from tssr_jax.models.layers import product
from tssr_jax.models.mixing import Gate
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.devices import CLASSES, WHOLE


class DistinctFeatures(NamedTuple):
    """Features of only those items of a batch that have content.

    Attributes:
      ids: int [number], ascending, each item once.
      vectors: [number, feature_dim].
    """

    ids: jax.Array
    vectors: jax.Array


# Features of all classes, [shard_classes, feature_dim], or of the batch's items.
ItemFeatures = jax.Array | DistinctFeatures


@struct.dataclass
class Content:
    """A step's inputs about the items, beside their ids.

        Content({"text": features})  # float32 [num_items + 1, 384]; row 0 is padding

    Attributes:
      features: by modality, see `ItemFeatures`.
      inputs: by modality, inputs of a trainable encoder.
      known: bool [shard_classes], items that training has seen, for a head that reads content; id
        vectors of the others are not used. None: all items are known.
      memories: what a model with memories reads; None without.
      neighbours: items that share id vectors, see `models.shared_ids`; None without.
      chances: int32 [num_classes], cumulative weights of drawn items, see `losses.drawn_items`.
        None if no items are drawn.
    """

    features: Mapping[str, Any] = struct.field(default_factory=dict)
    inputs: Mapping[str, Any] = struct.field(default_factory=dict)
    known: jax.Array | None = None
    chances: jax.Array | None = None
    memories: Memories | None = None
    neighbours: Neighbours | None = None


# How a run's content lies on the devices.
_LAYOUT: dict[str, Any] = {"features": CLASSES, "known": CLASSES} | dict.fromkeys(
    ("inputs", "chances", "memories", "neighbours"), WHOLE
)
CONTENT_LAYOUT = Content(**_LAYOUT)
# Forms of features that the model's functions take: one modality's features, several modalities'
# features by name, a `Content`, or None.
Features = ItemFeatures | Mapping[str, Any] | Content | None


def as_content(features: Features, modalities: Sequence[str]) -> Content:
    """Converts features in any form to `Content`; a single table is the only modality's.

    Raises:
      ValueError: if there is a single table for several modalities.
    """
    if features is None:
        return Content()
    if isinstance(features, Content):
        return features
    if isinstance(features, Mapping):
        return Content(features)
    if len(modalities) > 1:
        raise ValueError(f"features of {tuple(modalities)} have to be given by name")
    return Content({modalities[0]: features})


class ProjectedContent(nn.Module):
    """Projects rows of a feature table to the model's width.

    Attributes:
      d_model: width of the model.
      catalogue: how the table's rows lie on the devices.
      no_content_vector: items without features (a row of zeros) get a learnt vector.
      compute_dtype: of the products' inputs.
      hidden: width of a hidden layer, whose output is added to the output of the paper's Dense
        layer; 0 is none. A linear map keeps the encoder's similarities, but items that people
        choose in sequence often have dissimilar content.
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
          item_sequence: int [batch, length]; padding reads feature row 0, or zeros. None embeds all
            classes of this device, in order.
          item_features: the table; items that `DistinctFeatures` lack read zeros.

        Returns:
          [batch, length, d_model]; [shard_classes, d_model] of all classes.

        Raises:
          ValueError: if all classes are asked for, but only features of some are there.
        """
        if isinstance(item_features, DistinctFeatures):
            if item_sequence is None:
                raise ValueError("features of a batch's items are not those of all classes")
            # Row 0 is for padding and for items without features.
            ids, vectors = item_features
            table = jnp.concatenate([jnp.zeros_like(vectors[:1]), vectors])
            place = jnp.minimum(jnp.searchsorted(ids, item_sequence), ids.size - 1)
            return self._rows(table, jnp.where(ids[place] == item_sequence, 1 + place, 0))
        if item_sequence is None:
            return self._project(item_features)
        return self.catalogue.lookup(functools.partial(self._rows, item_features), item_sequence)

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
            # Encoders' vectors may have any norm: scale their entries to about 1.
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


class FusedContent(nn.Module):
    """Projects each modality to the model's width, and mixes the results.

    A modality that an item lacks gives a learnt vector of its own.

    Attributes:
      modalities: e.g. ("text", "image").
      fusion: "sum" of the projections; or, of two, "gate": g * first + (1 - g) * second,
        element-wise, with g of both.
      d_model: width of the model.
      catalogue: see `ProjectedContent`.
      no_content_vector: see `ProjectedContent`.
      compute_dtype: see `ProjectedContent`.
      hidden: see `ProjectedContent`.
    """

    modalities: tuple[str, ...]
    fusion: str
    d_model: int
    catalogue: Catalogue
    no_content_vector: bool = True
    compute_dtype: str = "float32"
    hidden: int = 0

    @nn.compact
    def __call__(
        self, item_sequence: jax.Array | None, item_features: Mapping[str, ItemFeatures]
    ) -> jax.Array:
        """Embeds the content of each position, or of each class, as `ProjectedContent` does."""
        settings = (
            *(self.d_model, self.catalogue, self.no_content_vector),
            *(self.compute_dtype, self.hidden),
        )
        vectors = [
            ProjectedContent(*settings, name=name)(item_sequence, item_features[name])
            for name in self.modalities
        ]
        if self.fusion == "sum":
            return functools.reduce(operator.add, vectors)
        first, second = vectors
        return Gate(self.compute_dtype, name="gate")(first, second)[1]
