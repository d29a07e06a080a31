"""Settings that fit the data: what ranked best for short histories, and for long ones.

A configuration file leaves some fields open, as None. When a run starts, `filled` sets them by what
the data are like; a value from the command line stays. docs/reference/options.md has the rules.
"""

import math
from typing import Any, NamedTuple

import ml_collections
from ml_collections import config_dict

from tssr_jax.config.choices import MEMORIES
from tssr_jax.config.fields import flattened

# The median user's number of training interactions from which histories count as long.
LONG = 20
# The share of repeats from which items that a user had before may be recommended again.
MANY_REPEATS = 0.05
# Batches are halved until an epoch has this many steps, down to the smallest one. With fewer steps
# the gate of memories learns too little before the network has learnt small data by heart.
_STEPS_PER_EPOCH = 100
_SMALLEST_BATCH = 16

_ANY_DATA = {
    "model.content_hidden": 256,
    "model.head": "tied",
    "model.max_length": 50,
    "model.mixing": "experts",
    "model.num_cross_layers": 1,
    "loss.lambda_item": 0.1,
    "loss.lambda_user": 0.1,
    "optimizer.ema_decay": 0.99,
    "train.early_stopping_patience": 5,
    "train.num_epochs": 40,
}
# What keeps short, sparse histories from being learnt by heart.
_SHORT_HISTORIES = {
    "model.d_ffn": 256,
    "model.d_model": 128,
    "model.dropout_rate": 0.4,
    "model.id_neighbours": 10,
    "model.id_reads_content": True,
    "model.num_heads": 4,
    "model.num_unimodal_layers": 1,
    "model.tie_orders": 4,
    "optimizer.learning_rate": 6e-4,
    "optimizer.weight_decay": 0.1,
    "train.batch_size": 128,
    "train.packing": True,
    "train.time_noise": (0.0, 7.0, 30.0, 1e6),
    "train.windows": "last",
}
# Strided windows cover whole histories, in many steps of small batches. They are not packed: there
# is little padding to save. With a width of 128 an epoch would take twice as long.
_LONG_HISTORIES = {
    "model.d_ffn": 128,
    "model.d_model": 64,
    "model.dropout_rate": 0.2,
    "model.id_neighbours": 0,
    "model.id_reads_content": False,
    "model.num_heads": 2,
    "model.num_unimodal_layers": 2,
    "model.tie_orders": 1,
    "optimizer.learning_rate": 1e-3,
    "optimizer.weight_decay": 0.0,
    "train.batch_size": 32,
    "train.packing": False,
    "train.time_noise": (),
    "train.windows": "strided",
}


class Facts(NamedTuple):
    """What open fields depend on.

    Attributes:
      median_length: the median user's number of training interactions.
      repeats: share of the users' newest training items that they had before.
      fading: see `memory.choosing`.
      windows: number of training windows.
      has_texts: whether items have texts.
    """

    median_length: float = 0.0
    repeats: float = 0.0
    fading: float = 0.0
    windows: float = math.inf
    has_texts: bool = True


_FACTS = Facts()


def fit_to_data(config: ml_collections.ConfigDict) -> None:
    """Sets a configuration to what ranked best, and leaves open what depends on the data."""
    config.update_from_flattened_dict(_ANY_DATA)
    types = {name: type(value) for name, value in _SHORT_HISTORIES.items()}
    types |= {"train.window_stride": int, "memory.fading": float, "evaluate.keep_seen": bool}
    types |= {"model.memory": tuple}
    for name, kind in types.items():
        section, _, field = name.rpartition(".")
        config[section][field] = config_dict.placeholder(kind)


def open_fields(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The fields that depend on the data."""
    return tuple(name for name, value in flattened(config).items() if value is None)


def filled(config: ml_collections.ConfigDict, facts: Facts = _FACTS) -> ml_collections.ConfigDict:
    """The configuration with a value for each open field; itself if there is none.

    Args:
      config: the configuration.
      facts: about the data; by default as for short histories without repeats.
    """
    names = open_fields(config)
    if not names:
        return config
    whole = config.copy_and_resolve_references()
    by_length = _SHORT_HISTORIES if facts.median_length < LONG else _LONG_HISTORIES
    keep_seen = config.evaluate.keep_seen
    if keep_seen is None:
        keep_seen = facts.repeats > MANY_REPEATS
    left_out = {"words"} if not facts.has_texts else set()
    left_out |= {"repeats"} if not keep_seen else set()
    values: dict[str, Any] = {
        **by_length,
        "train.window_stride": config.model.max_length,
        "memory.fading": facts.fading,
        "evaluate.keep_seen": keep_seen,
        "model.memory": tuple(name for name in MEMORIES if name not in left_out),
    }
    while values["train.batch_size"] > max(_SMALLEST_BATCH, facts.windows / _STEPS_PER_EPOCH):
        values["train.batch_size"] //= 2
    no_ids = tuple(config.model.streams) == ("content",) or config.optimizer.lazy_rows
    if no_ids or not facts.has_texts:
        values["model.id_neighbours"] = 0
    values["model.id_neighbours"] = min(values["model.id_neighbours"], config.memory.neighbours)
    whole.update_from_flattened_dict({name: values[name] for name in names})
    return whole
