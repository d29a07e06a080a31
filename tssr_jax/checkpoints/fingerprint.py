"""Fingerprints of arrays, which show whether a restored array equals the saved one."""

from typing import Any

import jax
import jax.numpy as jnp

from tssr_jax.parallel.sharding import path_names

# One odd step per dimension, so that a value's weight depends on its position.
_STEPS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)


def fingerprints(tree: Any) -> dict[str, int]:
    """A 32-bit number for each array, by path; any single changed value changes it.

    The sum of the values' bits, each times an odd number given by its position, modulo 2^32. Zeros
    that pad an array add nothing.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    numbers = jax.device_get(_sums([leaf for _, leaf in leaves]))
    names = ("/".join(path_names(path)) for path, _ in leaves)
    return {name: int(number) for name, number in zip(names, numbers, strict=True)}


@jax.jit
def _sums(arrays: list[jax.Array]) -> list[jax.Array]:
    return [_sum(x) for x in arrays]


def _sum(x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x.astype(_SAME_SIZE.get(x.dtype, x.dtype)), jnp.uint32)
    places = jnp.zeros(x.shape, jnp.uint32)
    for dimension, step in zip(range(x.ndim), _STEPS, strict=False):
        places += jax.lax.broadcasted_iota(jnp.uint32, x.shape, dimension) * jnp.uint32(step)
    return (bits * (2 * places + 1)).sum(dtype=jnp.uint32)


# Types in a train state that do not have 32 bits, and 32-bit types that hold them exactly.
_SAME_SIZE = {jnp.dtype(jnp.bfloat16): jnp.float32, jnp.dtype(bool): jnp.int32}
