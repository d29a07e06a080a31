"""One vector of an item's content from several modalities: texts and images."""

from collections.abc import Mapping

import jax
from flax import linen as nn

from tssr_jax.catalogue import Catalogue
from tssr_jax.models.content.frozen import FrozenContent, ItemFeatures
from tssr_jax.models.gate import Gate

MODALITIES = ("text", "image")
FUSIONS = ("sum", "gate")
# Of one modality, or of each of several.
ContentFeatures = ItemFeatures | Mapping[str, ItemFeatures]


class FusedContent(nn.Module):
    """Projects each modality to the model's width, and mixes the results.

    A modality that an item lacks gives a learnt vector of its own.

    Attributes:
      modalities: two of `MODALITIES`.
      fusion: "sum" of the projections, or "gate": g * first + (1 - g) * second, element-wise, with
        g of both.
      d_model: width of the model.
      catalogue: see `FrozenContent`.
      no_content_vector: the same.
      compute_dtype: the same.
      hidden: the same.
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
        """Embeds the content of each position, or of each class, as `FrozenContent` does."""
        settings = (
            *(self.d_model, self.catalogue, self.no_content_vector),
            *(self.compute_dtype, self.hidden),
        )
        first, second = (
            FrozenContent(*settings, name=name)(item_sequence, item_features[name])
            for name in self.modalities
        )
        if self.fusion == "sum":
            return first + second
        return Gate(self.compute_dtype, name="gate")(first, second)[1]
