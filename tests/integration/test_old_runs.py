"""Runs of before the code moved into packages: metrics, lists, and how they go on."""

import json
import shutil

import pytest

from tests.support.runs import ROOT
from tssr_jax import Recommender, UserError, evaluate, train
from tssr_jax.config.saved import load_config

EXPECTED = json.loads((ROOT / "tests" / "old_runs" / "expected.json").read_text())
HISTORIES = [["i1", "i2", "i3"], ["i7", "i8"], []]


def old_run(name, tmp_path):
    """The run, with its raw files and its cache below `tmp_path`."""
    folder = ROOT / "tests" / "old_runs"
    shutil.copytree(folder / "raw", tmp_path / "raw")
    shutil.copytree(folder / name, tmp_path / name)
    path = tmp_path / name / "config.json"
    config = json.loads(path.read_text())
    config["data"] |= {"raw_dir": str(tmp_path / "raw"), "cache_dir": str(tmp_path / "cache")}
    path.write_text(json.dumps(config))
    return tmp_path / name


@pytest.mark.parametrize("name", EXPECTED)
def test_metrics_and_lists_are_those_of_before(name, tmp_path):
    workdir = old_run(name, tmp_path)
    metrics = evaluate(workdir)
    expected = EXPECTED[name]["metrics"]
    assert metrics.keys() == expected.keys()
    assert metrics == pytest.approx(expected, abs=1e-6)
    lists = Recommender.from_workdir(workdir, batch_size=8).recommend(HISTORIES, top_k=5)
    for found, wanted in zip(lists, EXPECTED[name]["lists"], strict=True):
        assert [item.item for item in found.items] == [item for item, _ in wanted]
        scores = [item.score for item in found.items]
        assert scores == pytest.approx([score for _, score in wanted], abs=1e-4)


def test_an_old_run_goes_on(tmp_path):
    workdir = old_run("gate", tmp_path)
    config = load_config(workdir)
    config.train.num_epochs += 1
    assert train(config, workdir)["num_users"] == 40
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())[-1] > 16


def test_a_field_that_is_gone_is_told_where_it_had_another_value(tmp_path):
    workdir = old_run("gate", tmp_path)
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    config["model"]["norm"] = "pre"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model\.norm='pre', which this version no longer has"):
        evaluate(workdir)
