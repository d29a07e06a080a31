"""Fields of a configuration by their dotted names, as on the command line."""

from collections.abc import Collection, Mapping
from typing import Any

import ml_collections

from tssr_jax.errors import did_you_mean


def flattened(config: ml_collections.ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """All fields, {"model.d_model": 128, ...}; tuples stay whole."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict | Mapping):
            fields |= {f"{name}.{below}": x for below, x in flattened(value).items()}
        else:
            fields[name] = value
    return fields


def unknown_field(name: str, known: Collection[str]) -> str:
    """The error message for a field that does not exist."""
    return f"Unknown field {name}{did_you_mean(name, known)}"
