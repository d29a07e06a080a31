"""Vectors that items are compared by."""

from typing import Any, Literal

import numpy as np

from tssr_jax.config.choices import MODALITIES
from tssr_jax.errors import UserError
from tssr_jax.models.content import Content
from tssr_jax.models.head import HeadWeights
from tssr_jax.models.shared_ids import ids_as_read
from tssr_jax.models.tssr import TSSR

# The head's, the id stream's, or content features.
Space = Literal["scores", "id", "content"]


def item_vectors(
    space: Space, model: TSSR, params: Any, content: Content, weights: HeadWeights
) -> np.ndarray:
    """Vectors of all classes, float32 [num_items + 1, width]; row 0 is padding.

    Args:
      space: "scores" are the head's vectors, which are multiplied by a fused state to score items;
        "id" are rows of the id table; "content" are content features.
      model: the module.
      params: its parameters.
      content: what it reads of the items.
      weights: of its head.

    Raises:
      UserError: if the model has no such.
    """
    if space == "scores":
        return np.asarray(weights.kernel.T)
    tables: list[Any] = []
    if space == "id" and "token_embedding" in params:
        table = params["token_embedding"]["embedding"]
        tables = [ids_as_read(table, content.known, content.neighbours)]
    elif space == "content":
        tables = [content.features[name] for name in MODALITIES if name in content.features]
    if not tables:
        raise UserError(f"A model of the streams {model.streams} has no vectors {space!r}.")
    return np.concatenate([np.asarray(table) for table in tables], axis=1)


def nearest(
    vectors: np.ndarray, of: int, allowed: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The classes whose vectors are the most similar to that of one, and the cosines.

    Args:
      vectors: of L2 norm 1, or zero, [num_classes, width].
      of: the class.
      allowed: bool [num_classes].
      top_k: most classes; there are fewer where fewer are allowed and have a vector.
    """
    cosines = vectors @ vectors[of]
    cosines[~(allowed & vectors.any(axis=1))] = -np.inf
    cosines[[0, of]] = -np.inf
    number = min(top_k, int(np.isfinite(cosines).sum()))
    best = np.lexsort((np.arange(cosines.size), -cosines))[:number]
    return best, cosines[best]
