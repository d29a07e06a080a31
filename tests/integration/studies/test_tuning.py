"""Variants of a study that have settings of their own; trials are not run."""

import json

import pytest
from etils import epath

from tests.support.raw_data import tiny_config
from tssr_jax.config.files import write_json
from tssr_jax.errors import UserError
from tssr_jax.studies import designs, runner
from tssr_jax.studies import search as search_module
from tssr_jax.studies.designs import Study, Variant
from tssr_jax.studies.runner import run_study
from tssr_jax.studies.slots import Pace

STUDY = Study(
    "?",
    (
        Variant("both", {"loss.lambda_item": 0.0}, {"optimizer.learning_rate": 0.5}),
        Variant("ids", {"model.streams": ("id",)}),
        Variant("popular", {"baseline.kind": "popularity"}),
        Variant("neighbours", {"baseline.kind": "item_knn"}),
    ),
)


@pytest.fixture(name="ran")
def fixture_ran(monkeypatch):
    """What was run, as folder of the search or None, and configuration."""
    ran = []

    def run_trial(trial, *_, **__):
        searched = trial.folder.parent.parent.name if trial.variant.startswith("trial") else None
        ran.append((searched, trial.config))
        # The smallest step size is best, and the largest decay; dropout does not matter.
        value = trial.config.memory.decay - trial.config.optimizer.learning_rate
        result = {"metrics": {split: {"ndcg@10": value} for split in ("validation", "test")}}
        write_json(trial.folder / "result.json", result)
        return True

    monkeypatch.setitem(designs.STUDIES, "tiny", STUDY)
    monkeypatch.setattr(search_module, "run_trial", run_trial)
    monkeypatch.setattr(runner, "run_trial", run_trial)
    monkeypatch.setattr(runner, "write_report", lambda *_: None)
    return ran


def test_each_variant_has_the_best_of_its_own_search(ran, tmp_path):
    config = tiny_config(tmp_path)
    config.search.space = (
        "optimizer.learning_rate: log 1e-4 1.0",
        "loss.lambda_user: range 0.0 1.0",
        "loss.lambda_item: range 0.0 1.0",
        "memory.decay: range 0.1 1.0",
    )
    run_study("tiny", config, tmp_path / "study", 2, tune_trials=5)
    searched = [name for name, _ in ran if name]
    assert searched == ["both"] * 5 + ["ids"] * 5 + ["neighbours"] * 5
    # Of one variant, by the trials of its search: first the variant's own values.
    rates = {
        name: [own.optimizer.learning_rate for folder, own in ran if folder == name]
        for name in ("both", "ids")
    }
    assert rates["both"][0] == 0.5 and rates["ids"][0] == config.optimizer.learning_rate
    weights = {own.loss.lambda_user for folder, own in ran if folder == "ids"}
    assert weights == {config.loss.lambda_user}
    # What makes a variant what it is stays, what else is read is searched.
    assert {own.loss.lambda_item for folder, own in ran if folder == "both"} == {0.0}
    assert len({own.loss.lambda_user for folder, own in ran if folder == "both"}) == 5
    decays = [own.memory.decay for folder, own in ran if folder == "neighbours"]
    last = [own for folder, own in ran if folder is None]
    # Seeds are others than the search's, whose best trial was lucky with it.
    assert {own.seed for folder, own in ran if folder} == {0}
    assert [own.seed for own in last] == [1] * 4 + [2] * 4
    for both, ids, popular, neighbours in (last[:4], last[4:]):
        assert both.optimizer.learning_rate == min(rates["both"])
        assert ids.optimizer.learning_rate == min(rates["ids"]) and ids.model.streams == ("id",)
        assert popular.optimizer.learning_rate == config.optimizer.learning_rate
        assert neighbours.memory.decay == max(decays)
    number = len(ran)
    run_study("tiny", config, tmp_path / "study", 2, tune_trials=5)
    assert len(ran) == number


def test_only_variants_that_are_asked_for_are_searched(ran, tmp_path):
    config = tiny_config(tmp_path)
    config.search.space = ("optimizer.learning_rate: log 1e-4 1.0",)
    workdir = tmp_path / "study"
    run_study("tiny", config, workdir, 1, ["ids"], tune_trials=2)
    assert [name for name, _ in ran] == ["ids", "ids", None]
    run_study("tiny", config, workdir, 1, ["both"], tune_trials=2)
    assert [name for name, _ in ran[3:]] == ["both", "both", None]
    # What was found before for the others is known, so that what ended is told.
    lines = (workdir / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["variant"] for line in lines] == ["both", "ids"]


@pytest.mark.parametrize(("before", "now"), [(2, 3), (2, 0), (0, 2)])
def test_another_tuning_is_refused_before_anything_runs(ran, tmp_path, before, now):
    config = tiny_config(tmp_path)
    config.search.space = ("optimizer.learning_rate: log 1e-4 1.0",)
    run_study("tiny", config, tmp_path / "study", 1, ["ids"], tune_trials=before)
    number = len(ran)
    with pytest.raises(UserError, match=f"--tune_trials is {now}, there it was {before}"):
        run_study("tiny", config, tmp_path / "study", 1, ["ids"], tune_trials=now)
    assert len(ran) == number


def test_another_time_limit_is_refused_before_anything_runs(ran, tmp_path):
    config = tiny_config(tmp_path)
    run_study("tiny", config, tmp_path / "study", 1, ["ids"], pace=Pace(minutes=10))
    number = len(ran)
    with pytest.raises(UserError, match=r"--trial_minutes is 60, there it was 10\. Give the same"):
        run_study("tiny", config, tmp_path / "study", 2, ["ids"], pace=Pace(minutes=60))
    assert len(ran) == number
    run_study("tiny", config, tmp_path / "study", 2, ["ids"], pace=Pace(minutes=10, at_once=2))
    assert len(ran) == number + 1


def test_longer_trials_are_refused_beside_shorter_ones(ran, tmp_path):
    config = tiny_config(tmp_path)
    run_study("tiny", config, tmp_path / "study", 1, ["ids"])
    config.train.num_epochs += 1
    with pytest.raises(UserError, match=r"another configuration; it differs in train\.num_epochs"):
        run_study("tiny", config, tmp_path / "study", 2, ["ids"])


def test_trials_of_which_nobody_knows_what_they_were_given(ran, tmp_path):
    run_study("tiny", tiny_config(tmp_path), tmp_path / "study", 1, ["ids"])
    (tmp_path / "study" / "budget.json").unlink()
    with pytest.raises(UserError, match=r"holds trials, but not their budget\.json"):
        run_study("tiny", tiny_config(tmp_path), tmp_path / "study", 1, ["ids"])


def test_the_folder_of_a_search_is_no_study(ran, tmp_path):
    config = tiny_config(tmp_path)
    config.search.space = ("optimizer.learning_rate: log 1e-4 1.0",)
    search_module.search(config, epath.Path(tmp_path / "search"), 2)
    with pytest.raises(UserError, match="--tune_trials is 0, there it was none"):
        run_study("tiny", config, epath.Path(tmp_path / "search"), 1, ["ids"])
    run_study("tiny", config, epath.Path(tmp_path / "study"), 1, ["ids"])
    with pytest.raises(UserError, match="--tune_trials is none, there it was 0"):
        search_module.search(config, epath.Path(tmp_path / "study"), 2)


def test_a_budget_that_no_trial_has_had_may_change(ran, tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    with monkeypatch.context() as interrupted:
        interrupted.setattr(runner, "tune", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_study("tiny", config, tmp_path / "study", 1, ["ids"], tune_trials=9)
    run_study("tiny", config, tmp_path / "study", 1, ["ids"], pace=Pace(minutes=10))
    assert len(ran) == 1
