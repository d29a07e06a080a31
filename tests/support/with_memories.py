"""A tiny configuration with memories."""

from tests.support.raw_data import tiny_config
from tssr_jax.config.choices import MEMORIES


def config_of(folder, **fields):
    """With all memories; `fields` are values by dotted names."""
    config = tiny_config(folder)
    config.model.memory = MEMORIES
    config.memory.neighbours = 6
    config.update_from_flattened_dict(fields)
    return config
