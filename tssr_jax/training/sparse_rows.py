"""Sparse step: gather the rows of the item tables that a batch touches, update, scatter back.

The step treats the gathered rows as a small catalogue, whose classes are numbered by position.
Gradients and Adam skip the other rows: these rows and their moments do not change. (Dense Adam
keeps moving them by their decaying momentum.) Touched rows get the values of a dense step.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tssr_jax.models.content import Content
from tssr_jax.parallel import collectives
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.collectives import Axis
from tssr_jax.parallel.sharding import class_dimension, path_names

ITEM_TABLE, HEAD = "token_embedding", "output"


class SparseRows(NamedTuple):
    """Classes that a step touches, equal on all devices.

    Attributes:
      classes: int32 [size], distinct, ascending, class 0 first; padded with classes that do not
        exist.
      tables: parameters that are reduced to these classes: some of `ITEM_TABLE` and `HEAD`.
    """

    classes: jax.Array
    tables: tuple[str, ...]

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue of these classes."""
        return Catalogue(self.classes.size - 1)

    def places(self, ids: jax.Array) -> jax.Array:
        """Positions of classes that are among them, int [...]; class 0 is at position 0."""
        return jnp.searchsorted(self.classes, ids).astype(jnp.int32)

    def places_in(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with items as positions; labels, too, if the head is reduced."""
        own = {**batch, "item_sequence": self.places(batch["item_sequence"])}
        if "packed" in batch:
            own["packed"] = {**batch["packed"], "items": self.places(batch["packed"]["items"])}
        if HEAD in self.tables:
            own["labels"] = self.places(batch["labels"])
        return own

    def rows_of(self, table: jax.Array, dimension: int = 0) -> jax.Array:
        """The rows of a table for these classes; zeros for classes that do not exist."""
        return jnp.take(table, self.classes, axis=dimension, mode="fill", fill_value=0)

    def rows_of_content(self, content: Content) -> Content:
        """The rows of all content tables for these classes; weights of drawn items stay whole."""
        features = {name: self.rows_of(x) for name, x in content.features.items()}
        known = None if content.known is None else self.rows_of(content.known)
        return dataclasses.replace(content, features=features, known=known)

    def take(self, tree: Any) -> Any:
        """The rows of parameters, or of an optimiser's state, for these classes."""

        def own(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
            dimension = self._dimension(path)
            return x if dimension is None else self.rows_of(x, dimension)

        return jax.tree_util.tree_map_with_path(own, tree)

    def put(self, whole: Any, part: Any) -> Any:
        """Writes these rows, and all arrays without such rows, back into the whole tree."""

        def new(path: tuple[Any, ...], x: jax.Array, own: jax.Array) -> jax.Array:
            dimension = self._dimension(path)
            if dimension is None:
                return own
            place = (slice(None),) * dimension + (self.classes,)
            return x.at[place].set(own, mode="drop", indices_are_sorted=True, unique_indices=True)

        return jax.tree_util.tree_map_with_path(new, whole, part)

    def _dimension(self, path: tuple[Any, ...]) -> int | None:
        names = path_names(path)
        return class_dimension(names) if len(names) > 1 and names[-2] in self.tables else None


def sparse_rows(
    batch: Mapping[str, Any],
    more: jax.Array | None,
    tables: tuple[str, ...],
    catalogue: Catalogue,
    axis: Axis,
) -> SparseRows:
    """The classes that the global batch touches.

    Args:
      batch: `item_sequence` and `labels`, this device's rows.
      more: int [number], further classes, equal on all devices.
      tables: see `SparseRows`.
      catalogue: not cut over devices.
      axis: the device axis that the batch is cut along.
    """
    items = jnp.concatenate([batch["item_sequence"], batch["labels"]], axis=1)
    found = collectives.all_gather(items.reshape(-1), axis, 0)
    found = jnp.concatenate([jnp.zeros(1, found.dtype), found])
    if more is not None:
        found = jnp.concatenate([found, more])
    size = min(found.size, catalogue.num_classes)
    beyond = catalogue.num_classes
    classes = jnp.unique(found, size=size, fill_value=beyond)
    fill = beyond + jnp.arange(size, dtype=classes.dtype)  # distinct, for a fast scatter
    return SparseRows(jnp.where(classes == beyond, fill, classes), tables)
