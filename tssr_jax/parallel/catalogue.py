"""The catalogue's classes (items and padding), whole on each device or cut along an axis.

If they are cut, each device holds `shard_classes` rows of every table that has one row per class,
and the last device's rows are padded. The devices along the axis form a group: they gather their
rows of the batch, each computes on its classes, and the results are summed. All functions here run
inside a per-device body and are the identity without an axis.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tssr_jax.parallel import collectives


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """How the classes lie on the devices.

    Attributes:
      num_items: size of the catalogue; its ids are 1..num_items, class 0 is padding.
      axis: the device axis that the classes are cut along; None where all are on each device.
      num_shards: devices along the axis.
    """

    num_items: int
    axis: str | None = None
    num_shards: int = 1

    @property
    def num_classes(self) -> int:
        """Items and padding."""
        return self.num_items + 1

    @property
    def shard_classes(self) -> int:
        """Classes on each device."""
        return -(-self.num_classes // self.num_shards)

    @property
    def padded_classes(self) -> int:
        """Classes on all devices, with the padding of the last shard."""
        return self.shard_classes * self.num_shards

    def classes(self) -> jax.Array:
        """This device's classes, int32 [shard_classes]; num_classes and above do not exist."""
        return self._first() + jnp.arange(self.shard_classes)

    def gather_rows(self, tree: Any) -> Any:
        """The group's rows: [rows, ...] of each device -> [group_rows, ...]."""
        return jax.tree.map(lambda x: collectives.all_gather(x, self.axis, 0), tree)

    def own_rows_of_sum(self, x: jax.Array) -> jax.Array:
        """Sums the shards' results for the group's rows: [group_rows, ...] -> [rows, ...]."""
        return collectives.psum_scatter(x, self.axis)

    def own_rows(self, x: jax.Array) -> jax.Array:
        """This device's rows of an array that is equal on the whole group, [group_rows, ...]."""
        if self.axis is None:
            return x
        rows = x.shape[0] // self.num_shards
        return jax.lax.dynamic_slice_in_dim(x, collectives.index(self.axis) * rows, rows)

    def sum(self, tree: Any) -> Any:
        """Sums the shards' results."""
        return collectives.psum(tree, self.axis)

    def lookup(self, rows_of: Callable[[jax.Array], jax.Array], ids: jax.Array) -> jax.Array:
        """Vectors of classes on any device.

        Args:
          rows_of: maps places in this device's shard, int [...], to vectors [..., d].
          ids: int [batch, ...], classes.

        Returns:
          [batch, ..., d].
        """
        if self.axis is None:
            return rows_of(ids)
        place, inside = self._place(self.gather_rows(ids))
        return self.own_rows_of_sum(jnp.where(inside[..., None], rows_of(place), 0.0))

    def lookup_shared(self, rows_of: Callable[[jax.Array], jax.Array], ids: jax.Array) -> jax.Array:
        """`lookup` of ids int [number] that are the same on all devices of the group.

        Each device looks up a share of them. (If every device looked up all of them, gradients
        would be counted several times.)
        """
        if self.axis is None:
            return rows_of(ids)
        share = -(-ids.size // self.num_shards)
        padded = jnp.pad(ids, (0, share * self.num_shards - ids.size))
        start = collectives.index(self.axis) * share
        own = self.lookup(rows_of, jax.lax.dynamic_slice_in_dim(padded, start, share))
        return collectives.all_gather(own, self.axis, 0)[: ids.size]

    def pick(self, scores: jax.Array, classes: jax.Array) -> jax.Array:
        """Each row's score of one class, [rows, shard_classes] and int [rows] -> [rows]."""
        if self.axis is None:
            return jnp.take_along_axis(scores, classes[:, None], axis=1)[:, 0]
        return self.sum(self.pick_own(scores, classes[:, None])[0])[:, 0]

    def pick_own(self, scores: jax.Array, classes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Scores of the classes on this device, and a mask of these classes.

        Args:
          scores: [rows, shard_classes].
          classes: int [rows, width]; negative ones are on no device.

        Returns:
          [rows, width], 0 for classes of other shards; bool [rows, width].
        """
        place, inside = self._place(classes)
        return jnp.where(inside, jnp.take_along_axis(scores, place, axis=1), 0.0), inside

    def without(self, scores: jax.Array, classes: jax.Array) -> jax.Array:
        """Scores [rows, shard_classes], -inf for the classes int [rows, width] (-1: none)."""
        place, inside = self._place(classes)
        place = jnp.where(inside, place, self.shard_classes)  # beyond the end: dropped
        rows = jnp.arange(scores.shape[0])[:, None]
        return scores.at[rows, place].set(-jnp.inf, mode="drop")

    def marks(self, classes: jax.Array) -> jax.Array:
        """True for the classes int [rows, width] (-1: none), bool [rows, shard_classes]."""
        place, inside = self._place(classes)
        place = jnp.where(inside, place, self.shard_classes)  # beyond the end: dropped
        rows = jnp.arange(classes.shape[0])[:, None]
        nothing = jnp.zeros((classes.shape[0], self.shard_classes), bool)
        return nothing.at[rows, place].set(True, mode="drop")

    def scattered(self, classes: jax.Array, values: jax.Array) -> jax.Array:
        """Adds values up by class.

        Args:
          classes: int [rows, width].
          values: float32 [rows, width].

        Returns:
          float32 [rows, shard_classes], 0 for a class without a value.
        """
        place, inside = self._place(classes)
        place = jnp.where(inside, place, self.shard_classes)  # beyond the end: dropped
        rows = jnp.arange(classes.shape[0])[:, None]
        sums = jnp.zeros((classes.shape[0], self.shard_classes))
        return sums.at[rows, place].add(values, mode="drop")

    def own_columns(self, x: jax.Array) -> jax.Array:
        """This device's classes of an array of all: [..., num_classes] -> [..., shard_classes]."""
        if self.axis is None:
            return x
        beyond = self.padded_classes - self.num_classes
        x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, beyond),))
        return jax.lax.dynamic_slice_in_dim(x, self._first(), self.shard_classes, axis=-1)

    def replaced(self, scores: jax.Array, classes: jax.Array, values: jax.Array) -> jax.Array:
        """Scores [rows, shard_classes] with another value for one class of each row, int [rows]."""
        place, inside = self._place(classes)
        place = jnp.where(inside, place, self.shard_classes)  # beyond the end: dropped
        return scores.at[jnp.arange(scores.shape[0]), place].set(values, mode="drop")

    def logsumexp(self, scores: jax.Array) -> jax.Array:
        """Over all shards: [rows, shard_classes] -> [rows]; for use outside of gradients."""
        if self.axis is None:
            return jax.nn.logsumexp(scores, axis=1)
        highest = collectives.pmax(scores.max(axis=1), self.axis)
        return highest + jnp.log(self.sum(jnp.exp(scores - highest[:, None]).sum(axis=1)))

    def _first(self) -> jax.Array:
        return collectives.index(self.axis) * self.shard_classes

    def _place(self, classes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Indices in this shard (0 for classes elsewhere), and a mask of the classes here."""
        place = classes - self._first()
        inside = (classes >= 0) & (place >= 0) & (place < self.shard_classes)
        return jnp.where(inside, place, 0), inside
