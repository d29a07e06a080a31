"""A run that starts from another one's parameters, of other data."""

import json

import numpy as np
import pytest

from tests.raw_data import tiny_config
from tests.runs import best_params
from tssr_jax.errors import UserError
from tssr_jax.evaluate import evaluate
from tssr_jax.train import train


@pytest.fixture(name="configs")
def fixture_configs(tmp_path):
    """Two data sets; a model that reads content only, and scores by it."""
    configs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        config = tiny_config(tmp_path / name)
        config.model.update(streams=("content",), head="tied")
        config.optimizer.ema_decay = 0.9  # what ranks is then the average
        config.train.num_epochs = 2
        configs.append(config)
    interactions = tmp_path / "second" / "raw" / "interactions.csv"
    assert interactions.is_file()
    lines = interactions.read_text().splitlines(keepends=True)
    interactions.write_text("".join(lines[: len(lines) * 3 // 4]))  # fewer users
    return configs


def test_zero_shot_then_training(configs, tmp_path):
    first, second = configs
    train(first, tmp_path / "a")
    second.train.init_from = str(tmp_path / "a")
    second.train.num_epochs = 0
    metrics = train(second, tmp_path / "b")
    start, own = best_params(first, tmp_path / "a"), best_params(second, tmp_path / "b")
    for name in ("content_projection", "position_embedding", "blocks"):
        np.testing.assert_equal(own[name], start[name])
    assert evaluate(tmp_path / "b") == metrics
    assert train(second, tmp_path / "b") == metrics  # nothing is left to do
    second.train.num_epochs = 1
    train(second, tmp_path / "b")  # goes on from there
    steps = [json.loads(x)["step"] for x in (tmp_path / "b" / "metrics.jsonl").open()]
    assert steps[0] == 0 and steps[-1] > 0


def test_another_model_is_told(configs, tmp_path):
    first, second = configs
    first.model.update(d_model=8, norm="pre")
    first.train.num_epochs = 1
    train(first, tmp_path / "a")
    second.train.init_from = str(tmp_path / "a")
    with pytest.raises(UserError, match=r"has model\.norm=pre, this one post"):
        train(second, tmp_path / "b")
    second.model.norm = "pre"
    with pytest.raises(UserError, match=r"which here is .*Train it with the same sections"):
        train(second, tmp_path / "c")
    second.content.text.whitening = True
    with pytest.raises(UserError, match=r"has content\.text\.whitening=False, this one True"):
        train(second, tmp_path / "f")
    second.content.text.whitening = False
    second.model.streams = ("sum",)
    with pytest.raises(UserError, match=r"has model\.streams=\('content',\), this one \('sum',\)"):
        train(second, tmp_path / "g")
    second.model.streams = ("content",)
    # What only two streams read does not matter to one.
    second.model.update(d_model=8, mixing="experts", id_reads_content=True)
    train(second, tmp_path / "e")
    second.train.init_from = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"nowhere.*does not exist"):
        train(second, tmp_path / "d")


def test_another_mixture_is_told(configs, tmp_path):
    """Its parameters have the same shapes."""
    first, second = configs
    for config in configs:
        config.model.update(streams=("id", "content"), mixing="experts", id_reads_content=True)
    first.train.num_epochs = 1
    train(first, tmp_path / "a")
    second.train.init_from = str(tmp_path / "a")
    second.model.id_reads_content = False
    with pytest.raises(UserError, match=r"has model\.id_reads_content=True, this one False"):
        train(second, tmp_path / "b")
    # Of as many blocks, more attend to their own stream.
    second.model.update(id_reads_content=True, num_unimodal_layers=2, num_cross_layers=0)
    with pytest.raises(UserError, match=r"has model\.num_unimodal_layers=1, this one 2"):
        train(second, tmp_path / "c")
