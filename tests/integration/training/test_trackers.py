"""Weights & Biases (offline) and MLflow (a database on disk) get what metrics.jsonl gets."""

import json

import mlflow
import pytest

from tests.support.raw_data import tiny_config
from tests.support.runs import metrics_of
from tssr_jax.errors import UserError
from tssr_jax.training import trackers as module
from tssr_jax.training.loop import train


class StopsAfter:
    """A request to stop after some steps."""

    def __init__(self, steps):
        self.left, self.late, self.terminated = steps, False, True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @property
    def requested(self):
        self.left -= 1
        return self.left < 0


@pytest.fixture(name="config")
def fixture_config(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    config = tiny_config(tmp_path)
    config.train.trackers = ("wandb", "mlflow")
    return config


def runs():
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("tssr_jax")
    return client, client.search_runs([experiment.experiment_id])


def test_both_get_all_numbers_and_a_run_goes_on(config, tmp_path):
    workdir = tmp_path / "run"
    assert train(config, workdir, StopsAfter(4)) is None  # of three steps an epoch
    client, (own,) = runs()
    assert own.info.status == "KILLED"
    test = train(config, workdir)
    client, (again,) = runs()
    assert again.info.run_id == own.info.run_id and again.info.status == "FINISHED"
    assert again.data.params["model.d_model"] == "16"
    assert again.data.metrics["test/ndcg_at_10"] == pytest.approx(test["ndcg@10"])
    for name in ("validation/ndcg@10", "train/total"):
        sent = client.get_metric_history(own.info.run_id, name.replace("@", "_at_"))
        expected = {r["step"]: r[name] for r in metrics_of(workdir) if name in r}
        assert {m.step: m.value for m in sent} == pytest.approx(expected)
        assert len(expected) == 3
    ids = json.loads((workdir / "trackers.json").read_text())
    assert ids["mlflow"] == own.info.run_id
    files = list((workdir / "wandb").glob(f"offline-run-*-{ids['wandb']}/*.wandb"))
    sent = b"".join(path.read_bytes() for path in files)
    assert all(word in sent for word in (b"validation/ndcg@10", b"train/total", b"test/ndcg@10"))


def test_one_that_fails_is_told_and_training_goes_on(config, tmp_path, monkeypatch, capsys):
    config.train.trackers = ("mlflow",)

    def unreachable(self, step, record):
        raise ConnectionError("no route")

    monkeypatch.setattr(module._MLflow, "log", unreachable)
    assert train(config, tmp_path / "run")["num_users"] == 40
    assert capsys.readouterr().out.count("mlflow failed (no route): training goes on") == 1


def test_one_that_cannot_begin_ends_it_at_once(config, tmp_path, monkeypatch):
    config.train.trackers = ("mlflow",)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://")
    mlflow.set_tracking_uri("nowhere://")
    with pytest.raises(UserError, match="mlflow can't begin a run"):
        train(config, tmp_path / "run")


def test_names_are_checked(config, tmp_path, monkeypatch):
    config.train.trackers = ("wand",)
    with pytest.raises(UserError, match="known: wandb, mlflow"):
        train(config, tmp_path / "run")
    config.train.trackers = ("wandb",)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'tssr-jax\[wandb\]'"):
        train(config, tmp_path / "run")
