"""Sparse step: gather the rows of the item tables that a batch touches, update, scatter back.

The step runs on the gathered rows as on a small catalogue of its own, with classes by their places.
Gradients and Adam compute nothing for the other rows: these and their moments stay as they are.
(Dense Adam lets them drift on by their momentum, and lets that fade.) Touched rows get the values
that a dense step computes.
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
    """Classes that a step touches, the same on all devices.

    Attributes:
      classes: int32 [size], ascending, padding first, each once; filled up with classes that do
        not exist.
      tables: the parameters that are cut down to these, of `ITEM_TABLE` and `HEAD`.
    """

    classes: jax.Array
    tables: tuple[str, ...]

    @property
    def catalogue(self) -> Catalogue:
        """That of the rows."""
        return Catalogue(self.classes.size - 1)

    def places(self, ids: jax.Array) -> jax.Array:
        """Of classes that are among them, int [...]; padding's is 0."""
        return jnp.searchsorted(self.classes, ids).astype(jnp.int32)

    def places_in(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch whose items are places; its labels, too, if the head is cut down."""
        own = {**batch, "item_sequence": self.places(batch["item_sequence"])}
        if "packed" in batch:
            own["packed"] = {**batch["packed"], "items": self.places(batch["packed"]["items"])}
        if HEAD in self.tables:
            own["labels"] = self.places(batch["labels"])
        return own

    def rows_of(self, table: jax.Array, dimension: int = 0) -> jax.Array:
        """Their rows of a table; zeros for classes that do not exist."""
        return jnp.take(table, self.classes, axis=dimension, mode="fill", fill_value=0)

    def rows_of_content(self, content: Content) -> Content:
        """Their rows of all tables; what items are drawn by stays whole."""
        features = {name: self.rows_of(x) for name, x in content.features.items()}
        known = None if content.known is None else self.rows_of(content.known)
        return dataclasses.replace(content, features=features, known=known)

    def take(self, tree: Any) -> Any:
        """Parameters, or what an optimiser keeps for them, of these rows."""

        def own(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
            dimension = self._dimension(path)
            return x if dimension is None else self.rows_of(x, dimension)

        return jax.tree_util.tree_map_with_path(own, tree)

    def put(self, whole: Any, part: Any) -> Any:
        """The whole with these rows replaced, and with all that has no rows."""

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
    """The classes of the global batch.

    Args:
      batch: `item_sequence` and `labels`, this device's rows.
      more: int [number], other classes, the same on all devices.
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
    fill = beyond + jnp.arange(size, dtype=classes.dtype)  # all different, as a scatter likes them
    return SparseRows(jnp.where(classes == beyond, fill, classes), tables)
