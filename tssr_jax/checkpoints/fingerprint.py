"""Fingerprints of arrays, to tell whether what is read back is what was written."""

from typing import Any

import jax
import jax.numpy as jnp

from tssr_jax.parallel.sharding import path_names

# An odd step for each dimension, so that a value's weight tells its place.
_STEPS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)


def fingerprints(tree: Any) -> dict[str, int]:
    """A 32-bit number for each array, by path; any single changed value changes it.

    It is the sum of the values' bits, each times an odd number that its place determines, modulo
    2^32. Zeros that fill an array up to what devices share equally add nothing.
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


# Types of another size than 32 bits that a train state may hold, and what holds them exactly.
_SAME_SIZE = {jnp.dtype(jnp.bfloat16): jnp.float32, jnp.dtype(bool): jnp.int32}
