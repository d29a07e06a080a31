"""Collectives over named device axes; the axis None is a single device, and they do nothing.

A per-device body that uses these runs unchanged on one device, by pmap and by shard_map. An axis
may be a tuple of names: their product, the last one running fastest.
"""

from typing import Any

import jax
import jax.numpy as jnp

Axis = str | tuple[str, ...] | None


def size(axis: Axis) -> int:
    """Number of devices along the axis."""
    return 1 if axis is None else jax.lax.axis_size(axis)


def index(axis: Axis) -> jax.Array:
    """This device's place along the axis."""
    return jnp.zeros((), jnp.int32) if axis is None else jax.lax.axis_index(axis)


def without(axis: Axis, name: str | None) -> Axis:
    """The axis that is left when one name is taken out of a product."""
    if not isinstance(axis, tuple) or name not in axis:
        return axis
    return tuple(other for other in axis if other != name) or None


def psum(tree: Any, axis: Axis) -> Any:
    """Sums over the axis."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def pmax(tree: Any, axis: Axis) -> Any:
    """Maxima over the axis; no gradient goes through."""
    return tree if axis is None else jax.lax.pmax(tree, axis)


def psum_scatter(x: jax.Array, axis: Axis) -> jax.Array:
    """Sums over the axis and leaves each device its own rows of the sum."""
    return x if axis is None else jax.lax.psum_scatter(x, axis, tiled=True)


def all_gather(x: jax.Array, axis: Axis, dimension: int) -> jax.Array:
    """All devices' arrays side by side along a dimension, in the order of the axis."""
    return x if axis is None else jax.lax.all_gather(x, axis, axis=dimension, tiled=True)


def shift(tree: Any, axis: Axis) -> Any:
    """Each device's arrays to the next one, the last one's to the first."""
    if axis is None:
        return tree
    number = jax.lax.axis_size(axis)
    return jax.lax.ppermute(tree, axis, [(i, (i + 1) % number) for i in range(number)])
