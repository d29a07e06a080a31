"""Side information of a history: each item's event, and the user's attributes.

    events     int [batch, length], numbers of the items' events from 1
    profiles   int [batch, length], the code of the user (see `data_pipeline.profiles`)

0, or a missing array, means unknown.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Side = Mapping[str, jax.Array]
NO_SIDE: Side = MappingProxyType({})
NAMES = ("events", "profiles")


def side_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a batch has of it."""
    return {name: batch[name] for name in NAMES if name in batch}


def with_side(
    positions: jax.Array,
    side: Side,
    events: nn.Embed | None,
    profiles: nn.Embed | None,
    sizes: Sequence[int],
) -> jax.Array:
    """Vectors of positions, [batch, length, d_model], plus those of what is known beside the items.

    Args:
      positions: [batch, length, d_model], or [length, d_model].
      side: see above.
      events: vectors of events; None reads none.
      profiles: vectors of the values of users' fields, field by field; None reads none.
      sizes: of the fields, see `data_pipeline.profiles`.
    """

    def add(table: nn.Embed, numbers: jax.Array, start: int = 0) -> jax.Array:
        return positions + jnp.where((numbers > 0)[..., None], table(start + numbers), 0.0)

    if events is not None and "events" in side:
        positions = add(events, side["events"])
    if profiles is not None and "profiles" in side:
        codes, start = side["profiles"], 0
        for size in sizes:
            positions = add(profiles, codes % size, start)
            codes, start = codes // size, start + size
    return positions
