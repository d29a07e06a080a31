"""Collectives over a named device axis; the axis None is a single device, and they do nothing.

A per-device body written with these runs alike by itself, under pmap and under shard_map.
"""

from typing import Any

import jax
import jax.numpy as jnp


def size(axis: str | None) -> int:
    """Number of devices along the axis."""
    return 1 if axis is None else jax.lax.axis_size(axis)


def index(axis: str | None) -> jax.Array:
    """This device's place along the axis."""
    return jnp.zeros((), jnp.int32) if axis is None else jax.lax.axis_index(axis)


def psum(tree: Any, axis: str | None) -> Any:
    """Sums over the axis."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def all_gather(x: jax.Array, axis: str | None, dimension: int) -> jax.Array:
    """All devices' arrays side by side along a dimension, in the order of the axis."""
    return x if axis is None else jax.lax.all_gather(x, axis, axis=dimension, tiled=True)


def shift(tree: Any, axis: str | None) -> Any:
    """Each device's arrays to the next one, the last one's to the first."""
    if axis is None:
        return tree
    number = jax.lax.axis_size(axis)
    return jax.lax.ppermute(tree, axis, [(i, (i + 1) % number) for i in range(number)])
