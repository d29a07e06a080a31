"""Configurations: `default.py` names every knob; the others change a few of them."""

import importlib

import ml_collections


def load(base: str) -> ml_collections.ConfigDict:
    """The configuration of another file of this folder, with its argument behind a colon.

    Raises:
      ValueError: if there is no such file.
    """
    name, _, argument = base.partition(":")
    try:
        module = importlib.import_module(f"configs.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(f"{base!r}: there is no configs/{name}.py") from error
    config: ml_collections.ConfigDict = (
        module.get_config(argument) if argument else module.get_config()
    )
    return config
