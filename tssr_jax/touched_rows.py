"""A step on the rows of the item tables that it touches, whatever the size of the catalogue.

The rows of the batch's items are taken out, the step runs on them as on a small catalogue of its
own, with classes by their places, and the new rows are put back. So neither gradients nor Adam
have anything to do for other rows: those stay as they are, and their moments, too. (Dense Adam
lets them drift on by their momentum, and lets that fade.) What is computed for touched rows is the
same as by a dense step.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tssr_jax import collectives
from tssr_jax.catalogue import Catalogue
from tssr_jax.collectives import Axis
from tssr_jax.placement import class_dimension, path_names

ITEM_TABLE, HEAD = "token_embedding", "output"


class TouchedRows(NamedTuple):
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


def touched_rows(
    batch: Mapping[str, Any],
    more: jax.Array | None,
    tables: tuple[str, ...],
    catalogue: Catalogue,
    axis: Axis,
) -> TouchedRows:
    """The classes of the global batch.

    Args:
      batch: `item_sequence` and `labels`, this device's rows.
      more: int [number], other classes, the same on all devices.
      tables: see `TouchedRows`.
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
    return TouchedRows(jnp.where(classes == beyond, fill, classes), tables)
