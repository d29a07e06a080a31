"""A run that starts from another one's parameters, of other data."""

import json
import re

import jax
import numpy as np
import pytest

from tests.support.raw_data import two_configs
from tests.support.runs import best_params
from tssr_jax.config import default
from tssr_jax.errors import UserError
from tssr_jax.evaluation.evaluate import evaluate
from tssr_jax.run import build_run
from tssr_jax.training.loop import train
from tssr_jax.training.state import require_same_sections


@pytest.fixture(name="configs")
def fixture_configs(tmp_path):
    """Two data sets; a model that reads content only, and scores by it."""
    configs = two_configs(tmp_path)
    for config in configs:
        config.model.update(streams=("content",), head="tied")
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
    pretrained = build_run(second).pretrained["text_encoder"]
    for (path, mine), (_, before) in zip(
        jax.tree.leaves_with_path(own["text_encoder"]),
        jax.tree.leaves_with_path(pretrained),
        strict=True,
    ):
        assert not np.array_equal(mine, before), path  # all of it was trained in the first run
    assert not np.array_equal(own["output"]["kernel"], start["output"]["kernel"])


def test_another_model_is_told(configs, tmp_path):
    first, second = configs
    first.model.d_model = 8
    first.train.num_epochs = 1
    train(first, tmp_path / "a")
    second.train.init_from = str(tmp_path / "a")
    with pytest.raises(UserError, match=r"has model\.d_model=8, this one 16.*the same sections"):
        train(second, tmp_path / "b")
    second.model.d_model = 8
    train(second, tmp_path / "c")
    second.train.init_from = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"nowhere.*does not exist"):
        train(second, tmp_path / "d")


@pytest.mark.parametrize(
    ("field", "value", "refused"),
    [
        ("model.num_heads", 1, True),
        ("model.streams", ("sum",), True),
        ("model.mixing", "sum", True),
        ("model.id_reads_content", True, True),
        ("content.text.encoder", "ngrams", True),
        ("content.text.pooling", "cls", True),
        ("content.text.model_dir", "/elsewhere", False),
        ("content.image.model_file", "/elsewhere", False),
        ("loss.lambda_user", 0.3, False),
        ("data.source", "hm", False),
    ],
)
def test_the_sections_model_and_content_have_to_be_equal(field, value, refused):
    config = default.get_config()
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict({field: value})
    if not refused:
        require_same_sections(config, other, "--config.train.init_from=a")
        return
    with pytest.raises(UserError, match=rf"init_from=a: that run has {re.escape(field)}="):
        require_same_sections(config, other, "--config.train.init_from=a")
