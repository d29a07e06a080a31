"""Configurations: defaults, validation, shipped files, and the copy that a run saves."""

import importlib.util
from pathlib import Path

import ml_collections

from tssr_jax.config.default import get_config as default_config
from tssr_jax.config.fields import flattened
from tssr_jax.config.validation import validate_config

__all__ = [
    "default_config",
    "flattened",
    "load",
    "shipped_file",
    "shipped_names",
    "validate_config",
]

# The wheel has the files of configs/ in the package, a checkout beside it.
_PLACES = (Path(__file__).parent / "shipped", Path(__file__).parents[2] / "configs")
_FOLDER = next((place for place in _PLACES if place.is_dir()), _PLACES[0])


def shipped_names() -> list[str]:
    """The configurations that come with the program, e.g. "ml100k"."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem != "__init__")


def shipped_file(name: str) -> Path:
    """The file of a shipped configuration.

    Raises:
      ValueError: if there is none of this name.
    """
    if name not in shipped_names():
        raise ValueError(f"there is no configuration {name!r}; known: {', '.join(shipped_names())}")
    return _FOLDER / f"{name}.py"


def load(name: str) -> ml_collections.ConfigDict:
    """A shipped configuration by its name, with its argument behind a colon: "csv:FOLDER".

    Raises:
      ValueError: if there is none of this name.
    """
    stem, _, argument = name.partition(":")
    path = shipped_file(stem)
    spec = importlib.util.spec_from_file_location(f"tssr_jax_config_{stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config: ml_collections.ConfigDict = (
        module.get_config(argument) if argument else module.get_config()
    )
    return config
