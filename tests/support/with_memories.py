"""A tiny configuration with memories; fixtures: a trained run, and what answers for it."""

import pytest

from tests.support.raw_data import tiny_config
from tssr_jax.config.choices import MEMORIES
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.training.loop import train


def config_of(folder, **fields):
    """With all memories; `fields` are values by dotted names."""
    config = tiny_config(folder)
    config.model.memory = MEMORIES
    config.memory.neighbours = 6
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(name="workdir", scope="module")
def fixture_workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memories")
    train(config_of(folder), folder / "run")
    return folder / "run"


@pytest.fixture(name="recommender", scope="module")
def fixture_recommender(workdir):
    return Recommender.from_workdir(workdir, batch_size=8)
