"""Moves states of packed windows back to their windows (see `tssr_jax.data_pipeline.packing`)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

# `items`, `segments`, `positions` int [packed_rows, length], `places` int [batch, length].
Packed = Mapping[str, jax.Array]


def unpack(states: jax.Array, places: jax.Array) -> jax.Array:
    """Brings the states of packed tokens to the places of their windows.

    Args:
      states: [packed_rows, length, d_model].
      places: int [batch, length], rows of the flattened states; their number for padding.

    Returns:
      [batch, length, d_model], zeros for padding.
    """
    flat = states.reshape(-1, states.shape[-1])
    return jnp.concatenate([flat, jnp.zeros_like(flat[:1])])[places]


def packed_values(values: jax.Array, packed: Packed) -> jax.Array:
    """Brings numbers that belong to windows' items, int [batch, length], to the packed rows."""
    rows = jnp.zeros(packed["items"].size, values.dtype)
    # Places of padding are beyond the rows.
    rows = rows.at[packed["places"].reshape(-1)].set(values.reshape(-1), mode="drop")
    return rows.reshape(packed["items"].shape)
