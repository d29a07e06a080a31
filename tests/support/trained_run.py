"""Fixtures: one trained run that ranks items by ids and by content, and what answers for it."""

import pytest

from tests.support.raw_data import tiny_config
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.training.loop import train


@pytest.fixture(name="workdir", scope="package")
def fixture_workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained_run")
    config = tiny_config(folder)
    config.model.head = "tied"
    train(config, folder / "run")
    return folder / "run"


@pytest.fixture(name="recommender", scope="package")
def fixture_recommender(workdir):
    return Recommender.from_workdir(workdir, batch_size=8)
