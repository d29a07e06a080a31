"""Settings that fit the data, and a run that keeps those with which it began."""

import json

import numpy as np
import pytest

from configs import csv
from tests.support.raw_data import tiny_config
from tssr_jax.adapting import adapted
from tssr_jax.config.by_data import filled
from tssr_jax.config.saved import FILE_NAME, load_config
from tssr_jax.run import build_run
from tssr_jax.training.loop import train, train_batches


@pytest.fixture(name="config")
def fixture_config(tmp_path):
    """Fields are open; small where they are not."""
    tiny = tiny_config(tmp_path)
    config = csv.get_config(tiny.data.raw_dir)
    config.data.cache_dir, config.content = tiny.data.cache_dir, tiny.content
    config.train.num_epochs = 1
    return config


@pytest.mark.parametrize("windows", [None, "last", "strided"])
def test_batches_are_small_where_there_are_few_windows(config, windows, monkeypatch):
    """The windows that count are those that are trained, but for what the gate's users lend."""
    config.model.update(memory=(), max_length=3)
    if windows:
        config.train.update(windows=windows, window_stride=2)
    found = []

    def kept(config, facts):
        found.append(facts)
        return filled(config, facts)

    monkeypatch.setattr("tssr_jax.adapting.filled", kept)
    whole = adapted(config)
    assert [facts.windows for facts in found] == [train_batches(build_run(whole)).num_windows]
    assert whole.train.batch_size == 16


def test_a_run_that_goes_on_keeps_what_was_chosen(config, tmp_path, capsys):
    train(config, tmp_path / "run")
    assert "Settings that fit" in capsys.readouterr().out
    path = tmp_path / "run" / FILE_NAME
    chosen = json.loads(path.read_text())
    assert chosen["train"]["batch_size"] == 16
    del chosen["sha256"]
    chosen["train"]["batch_size"] = 8  # as other rules might have chosen
    path.write_text(json.dumps(chosen))
    config.train.num_epochs = 2
    train(config, tmp_path / "run")
    assert "Settings that fit" not in capsys.readouterr().out
    saved = load_config(tmp_path / "run")
    assert saved.train.batch_size == 8 and saved.train.num_epochs == 2
    assert np.isfinite(json.loads((tmp_path / "run" / "test_metrics.json").read_text())["mrr"])
