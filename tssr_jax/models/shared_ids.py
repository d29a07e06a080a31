"""Id vectors that items with like texts share.

    read_i = v_i + sum over the k items j whose texts are most like i's: w_ij v_j

v are the learnt id vectors; w are likenesses by words (`memory.words`), divided by their sum. An
item that few users took is then placed by what is known of items like it. (The idea is that of
graphs over items: LATTICE, arXiv 2104.09036; the graph here is fixed, and read once.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tssr_jax.memory.scores import Neighbours
from tssr_jax.parallel.catalogue import Catalogue


def sharing(table: Neighbours, number: int, num_known: int | None = None) -> Neighbours:
    """The nearest neighbours of each class that have id vectors, with weights whose sum is 1.

    Args:
      table: neighbours by words, the most similar ones first.
      number: how many of them are kept.
      num_known: items from this number on have no id vectors; None: all have.
    """
    classes, likeness = table
    if num_known is not None:
        likeness = np.where(classes <= num_known, likeness, np.float32(0))
        first = np.argsort(likeness == 0, axis=1, kind="stable")
        classes, likeness = (np.take_along_axis(x, first, axis=1) for x in (classes, likeness))
    classes, likeness = classes[:, :number], likeness[:, :number]
    total = likeness.sum(axis=1, keepdims=True)
    return Neighbours(classes, likeness / np.where(total > 0, total, np.float32(1)))


def shared_vectors(
    table: jax.Array, neighbours: Neighbours, catalogue: Catalogue
) -> Callable[[jax.Array], jax.Array]:
    """A lookup of shared id vectors by place on this device: int [...] to [..., d_model].

    Args:
      table: id vectors of this device's classes, [shard_classes, d_model].
      neighbours: of all classes, from `sharing`.
      catalogue: how the classes lie on the devices.
    """
    # A neighbour may lie on another device.
    whole = catalogue.gather_rows(table)
    classes = catalogue.classes()

    def rows_of(place: jax.Array) -> jax.Array:
        own = classes[place]
        nearest_first = tuple(jnp.moveaxis(jnp.asarray(x)[own], -1, 0) for x in neighbours)

        def add(vectors: jax.Array, kth: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            neighbour, weight = kth
            return vectors + weight[..., None] * whole[neighbour], None

        # One neighbour at a time: all vectors at once, or all sums in one program, take six times
        # as long to differentiate on CPUs.
        return jax.lax.scan(add, table[place], nearest_first)[0]

    return rows_of


def ids_as_read(table: Any, known: Any, neighbours: Neighbours | None = None) -> jax.Array:
    """All id vectors as streams read them, [classes, d_model]: zeros for what is not `known`.

    Args:
      table: id vectors; of the whole catalogue if there are neighbours.
      known: bool [classes], items that training has seen; None if all are.
      neighbours: items that share id vectors, see `shared_vectors`; None without.
    """
    table = jnp.asarray(table)
    if known is not None:
        table = table * jnp.asarray(known, jnp.float32)[:, None]
    if neighbours is None:
        return table
    return shared_vectors(table, neighbours, Catalogue(len(table) - 1))(jnp.arange(len(table)))
