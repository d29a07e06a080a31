"""A run that starts from another one's parameters, of other data."""

import json
import re

import jax
import numpy as np
import pytest
from etils import epath

from configs import default
from tests.raw_data import tiny_config
from tests.runs import best_params
from tssr_jax.errors import UserError
from tssr_jax.evaluate import evaluate
from tssr_jax.experiment import build_experiment
from tssr_jax.start import require_same_meaning
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


def test_an_encoder_that_was_trained_comes_whole(configs, tmp_path):
    first, second = configs
    for config in configs:
        config.model.head = "classes"
        config.content.text.update(trained_layers=1, learning_rate=1e-2)
    first.train.num_epochs = 1
    train(first, tmp_path / "a")
    second.train.update(init_from=str(tmp_path / "a"), num_epochs=0)
    train(second, tmp_path / "b")
    start, own = best_params(first, tmp_path / "a"), best_params(second, tmp_path / "b")
    np.testing.assert_equal(own["text_encoder"], start["text_encoder"])
    pretrained = build_experiment(second).pretrained["text_encoder"]
    for (path, mine), (_, before) in zip(
        jax.tree.leaves_with_path(own["text_encoder"]),
        jax.tree.leaves_with_path(pretrained),
        strict=True,
    ):
        assert not np.array_equal(mine, before), path  # all of it was trained in the first run
    assert not np.array_equal(own["output"]["kernel"], start["output"]["kernel"])


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
    # What only two streams read does not matter to one.
    second.model.update(d_model=8, mixing="experts", id_reads_content=True)
    train(second, tmp_path / "e")
    second.train.init_from = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"nowhere.*does not exist"):
        train(second, tmp_path / "d")


def test_a_parameter_that_would_be_left_out_is_told(configs, tmp_path):
    first, second = configs
    first.model.content_hidden = 6
    first.train.num_epochs = 1
    train(first, tmp_path / "a")
    second.train.init_from = str(tmp_path / "a")
    # Of the same shapes but for a layer more, which alone would make sense of the next one.
    second.model.content_hidden = 0
    with pytest.raises(UserError, match=r"the parameter content_projection/\w+.*Train it with"):
        train(second, tmp_path / "b")


@pytest.mark.parametrize(
    ("field", "value", "streams", "refused"),
    [
        ("model.num_heads", 1, ("id",), True),
        ("model.norm", "pre", ("id",), True),
        ("model.score_temperature", 0.1, ("id",), True),
        ("model.streams", ("sum",), ("content",), True),
        ("model.mixing", "sum", ("id", "content"), True),
        ("model.mixing", "sum", ("id",), False),
        ("model.id_reads_content", True, ("id", "content"), True),
        ("model.num_unimodal_layers", 2, ("id", "content"), True),
        ("content.text.encoder", "ngrams", ("content",), True),
        ("content.text.whitening", True, ("content",), True),
        ("content.text.whitening", True, ("sum",), True),
        ("content.text.whitening", True, ("id",), False),
        ("content.text.pooling", "cls", ("content",), True),
        ("content.text.pooling", "cls", ("id",), False),
        ("content.text.lora_alpha", 8.0, ("id", "content"), False),  # without adapters
        ("loss.lambda_user", 0.3, ("id", "content"), False),
    ],
)
def test_what_another_run_s_parameters_mean(field, value, streams, refused):
    config = default.get_config()
    config.model.streams = streams
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict({field: value})
    if not refused:
        require_same_meaning(config, other, epath.Path("a"))
        return
    with pytest.raises(UserError, match=rf"init_from=a: that run has {re.escape(field)}="):
        require_same_meaning(config, other, epath.Path("a"))


def test_another_scale_of_adapters_is_told():
    config = default.get_config()
    config.content.text.update(trained_layers=1, lora_rank=2)
    other = config.copy_and_resolve_references()
    other.content.text.lora_alpha = 8.0
    with pytest.raises(UserError, match=r"that run has content\.text\.lora_alpha=8"):
        require_same_meaning(config, other, epath.Path("a"))


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
