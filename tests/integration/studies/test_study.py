"""A study from its call to its report; what has ended is not run again."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest

from tests.support.clusters import two_nodes
from tests.support.raw_data import tiny_config
from tests.support.runs import ROOT, command, run_command
from tssr_jax.config import default
from tssr_jax.config.by_data import Facts, filled, fit_to_data
from tssr_jax.config.saved import load_config, save_config
from tssr_jax.errors import UserError
from tssr_jax.evaluation.evaluate import PER_USER_FILE
from tssr_jax.studies import designs, runner
from tssr_jax.studies.designs import STUDIES, Study, Variant
from tssr_jax.studies.findings import gains
from tssr_jax.studies.report import REFITTED
from tssr_jax.studies.runner import run_study
from tssr_jax.studies.slots import Pace, open_slots, run_trial
from tssr_jax.studies.trial import LOG_FILE, RESULT_FILE, Trial, make_trials
from tssr_jax.studies.worker import training_cost


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("settings", [None, Facts(4), Facts(100)], ids=str)
def test_every_variant_makes_sense(name, settings, tmp_path):
    config = default.get_config()
    if settings:
        fit_to_data(config)
        config = filled(config, settings)
    config.train.init_from = "elsewhere"
    trials = make_trials(STUDIES[name], config, range(2), tmp_path)
    number = len(STUDIES[name].variants_of(config))
    assert len({trial.folder for trial in trials}) == len(trials) == 2 * number
    assert [trial.config.seed for trial in trials[::number]] == [0, 1]
    for trial in trials:
        for field, value in trial.changes.items():
            section, _, leaf = field.rpartition(".")
            assert trial.config[section][leaf] == value
    assert config.train.init_from == "elsewhere" and config.seed == 0


def test_texts_of_fewer_fields(tmp_path):
    config = default.get_config()
    config.data.text_fields = ("title", "genres", "year")
    trials = make_trials(STUDIES["text"], config, [0], tmp_path)
    found = {t.variant: t.changes["data.text_fields"] for t in trials[4:]}
    assert found == {
        "text of title only": ("title",), "text of title and genres only": ("title", "genres")
    }  # fmt: skip


def test_what_training_cost(tmp_path):
    records = [
        {"epoch": 1.0, "sequences_per_second": 1.0, "seconds_per_epoch": 9.0},
        {"epoch": 1.0, "validation/ndcg@10": 0.3},
        {"epoch": 2.0, "sequences_per_second": 1.0, "seconds_per_epoch": 2.0},
        {"epoch": 2.0, "validation/ndcg@10": 0.2},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert training_cost(tmp_path) == {"epochs": 2.0, "best_epoch": 1.0, "seconds_per_epoch": 2.0}
    path.write_text(json.dumps({"epoch": 0.0, "validation/ndcg@10": 0.1}) + "\n")
    assert training_cost(tmp_path) == {"epochs": 0.0, "best_epoch": 0.0}


def test_other_devices_count_until_there_is_a_result(tmp_path):
    config = default.get_config()
    config.num_devices = 4
    (trial, *_) = make_trials(STUDIES["ablation"], config, [0], tmp_path)
    trial.prepare()
    config.num_devices = 1
    (again, *_) = make_trials(STUDIES["ablation"], config, [0], tmp_path)
    again.prepare()
    assert load_config(trial.folder).num_devices == 1  # what its process reads
    (trial.folder / RESULT_FILE).write_text("{}")
    trial.prepare()
    assert load_config(trial.folder).num_devices == 1  # what it was made with
    config.model.d_model = 8
    (other, *_) = make_trials(STUDIES["ablation"], config, [0], tmp_path)
    with pytest.raises(UserError, match=r"differs in model\.d_model"):
        other.prepare()


def test_what_a_study_needs_is_told(tmp_path):
    with pytest.raises(UserError, match=r"needs --config\.train\.init_from"):
        make_trials(STUDIES["transfer"], default.get_config(), [0], tmp_path)


def test_a_study_of_three_trials(tmp_path, monkeypatch, capsys):
    config = tiny_config(tmp_path)
    config.train.num_epochs = 2
    study = Study(
        "Which?",
        (
            Variant("both"),
            Variant("ids only", {"model.streams": ("id",)}),
            Variant("popular", {"baseline.kind": "popularity"}),
        ),
        by_group=True,
    )
    monkeypatch.setitem(designs.STUDIES, "tiny", study)
    workdir = tmp_path / "study"
    run_study("tiny", config, workdir, num_seeds=1)
    records = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
    assert [record["variant"] for record in records] == ["both", "ids only", "popular"]
    assert records[1]["changes"] == {"model.streams": ["id"]} and records[1]["seed"] == 0
    assert records[0]["cost"]["epochs"] == 2 and records[0]["cost"]["request_ms"] > 0
    assert records[0]["cost"]["parameters"] > records[1]["cost"]["parameters"] > 1_000
    with np.load(workdir / "trials" / "both-seed0" / "run" / PER_USER_FILE) as users:
        ndcg = gains(users, "ndcg@10").mean()
    np.testing.assert_allclose(records[0]["metrics"]["test"]["ndcg@10"], ndcg)
    report = (workdir / "report.md").read_text()
    assert f"| both | 1 | {ndcg:.4f} [" in report and "by length of history" in report
    assert "| ids only | model.streams=('id',) |" in report
    page = (workdir / "report.html").read_text()
    assert page.count("<svg") == 7
    assert "src=" not in page and 'href="http' not in page  # nothing is loaded from elsewhere

    def not_again(*_):
        raise AssertionError("a trial was run again")

    monkeypatch.setattr(runner, "run_trial", not_again)
    run_study("tiny", config, workdir, num_seeds=1)
    assert "3 done before" in capsys.readouterr().out
    config.model.d_model = 8
    with pytest.raises(UserError, match=r"another configuration.*model\.d_model"):
        run_study("tiny", config, workdir, num_seeds=1)


def test_a_study_with_refits(tmp_path, monkeypatch, capsys):
    """They are added to trials that have ended without; the report has both."""
    config = tiny_config(tmp_path)
    config.train.num_epochs, config.model.streams = 2, ("id",)
    study = Study("?", (Variant("ids"), Variant("popular", POPULAR)))
    monkeypatch.setitem(designs.STUDIES, "tiny", study)
    workdir = tmp_path / "study"
    run_study("tiny", config, workdir, num_seeds=1)
    first = [json.loads(x) for x in (workdir / "results.jsonl").read_text().splitlines()]
    assert REFITTED not in (workdir / "report.md").read_text()
    run_study("tiny", config, workdir, num_seeds=1, refit=True)
    assert "0 done before" in capsys.readouterr().out
    report = (workdir / "report.md").read_text()
    plain, refitted = report.split(f"## {REFITTED}")
    for record, before in zip(
        map(json.loads, (workdir / "results.jsonl").read_text().splitlines()), first, strict=True
    ):
        folder = workdir / "trials" / record["folder"]
        metrics, own = (
            record["metrics"],
            json.loads((folder / "refit/test_metrics.json").read_text()),
        )
        assert {k: v for k, v in record.items() if k != "metrics"} == {
            k: v for k, v in before.items() if k != "metrics"
        }
        assert metrics["test"] == before["metrics"]["test"] and metrics["refit"] == own
        assert f"| {record['variant']} | 1 | {metrics['test']['ndcg@10']:.4f}" in plain
        assert f"| {record['variant']} | 1 | {own['ndcg@10']:.4f}" in refitted
        assert load_config(folder / "refit").evaluate.held_out == ("test",)
    run_study("tiny", config, workdir, num_seeds=1, refit=True)
    assert "2 done before" in capsys.readouterr().out
    config.evaluate.held_out, config.train.early_stopping_patience = ("test",), 0
    with pytest.raises(UserError, match="studies and searches choose by validation"):
        run_study("tiny", config, workdir, num_seeds=1)


def test_only_some_variants_are_run(tmp_path, monkeypatch):
    """Trials are not run; the report has those that ended at any time."""
    config, ran = tiny_config(tmp_path), []

    def run_trial(trial, *_, **__):
        ran.append(trial.variant)
        (trial.folder / "result.json").write_text(json.dumps({"metrics": {"test": {"ndcg@10": 1}}}))
        return True

    reported = []
    monkeypatch.setattr(runner, "run_trial", run_trial)
    monkeypatch.setattr(
        runner, "write_report", lambda _n, _s, trials, *_: reported.append(len(trials))
    )
    run_study("sparsity", config, tmp_path, 1, ["ids only"])
    run_study("sparsity", config, tmp_path, 1, ["content only", "ids only"])
    assert ran == ["ids only", "content only"] and reported == [1, 2]
    assert not (tmp_path / "trials" / "TSSR-seed0").exists()
    # One that was asked for before, with settings that the study had then.
    folder = tmp_path / "trials" / "ids_only-seed0"
    other = load_config(folder)
    other.model.d_model = 8
    save_config(other, folder)
    run_study("sparsity", config, tmp_path, 1, ["content only"])
    assert reported == [1, 2, 1]
    with pytest.raises(UserError, match=r"d_model \(there 8"):
        run_study("sparsity", config, tmp_path, 1)
    with pytest.raises(UserError, match="'ids' is not in this study; it has: TSSR; ids only; con"):
        run_study("sparsity", config, tmp_path, 1, ["ids"])


@pytest.mark.slow
def test_a_trial_that_fails_is_told_and_the_others_run(tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    config.train.num_epochs = 1
    broken = {"data.raw_dir": str(tmp_path / "nowhere"), "data.cache_dir": str(tmp_path / "none")}
    study = Study("?", (Variant("broken", broken), Variant("popular", POPULAR)))
    monkeypatch.setitem(designs.STUDIES, "tiny", study)
    with pytest.raises(UserError, match=r"1 trial\(s\) failed.*nowhere"):
        run_study("tiny", config, tmp_path / "study", num_seeds=1)
    assert '"popular"' in (tmp_path / "study" / "results.jsonl").read_text()


POPULAR = {"baseline.kind": "popularity", "model.streams": ("id",)}


def test_trials_on_ray_and_their_end(tmp_path, monkeypatch):
    """Two trials that train nothing, on two nodes; and a training that is stopped."""
    pytest.importorskip("ray")
    config = tiny_config(tmp_path)
    other = POPULAR | {"evaluate.list_length": 7}
    study = Study("?", (Variant("popular", POPULAR), Variant("other", other)))
    monkeypatch.setitem(designs.STUDIES, "tiny", study)
    with two_nodes() as place:
        pace = Pace(place=place)
        run_study("tiny", config, tmp_path / "study", num_seeds=1, pace=pace)
        records = (tmp_path / "study" / "results.jsonl").read_text().splitlines()
        assert [json.loads(record)["variant"] for record in records] == ["popular", "other"]
        with pytest.raises(UserError, match="on Ray --workers says how many trials"):
            run_study("tiny", config, tmp_path / "study", 1, pace=Pace(at_once=2, place=place))

        config.train.update(num_epochs=1_000_000, early_stopping_patience=0)
        trial = Trial("long", {}, config, tmp_path / "long")
        trial.prepare()
        with open_slots(pace) as slots:
            assert slots.number == 2

            def stop_when_it_trains(word):
                if "epoch" in word:
                    slots.stopped.set()

            assert run_trial(trial, 0.0, stop_when_it_trains, slots) is False
        assert list((trial.run / "checkpoints").iterdir()) and trial.result() is None
        assert "Stopped by SIGTERM" in (trial.folder / LOG_FILE).read_text()


def test_a_hopeless_training_is_ended_and_saved(tmp_path):
    config = tiny_config(tmp_path)
    config.train.update(num_epochs=1_000_000, early_stopping_patience=0)
    trial = Trial("long", {}, config, tmp_path / "long")
    trial.prepare()
    seen = []

    def after_two(so_far):
        seen.append(so_far)
        return len(so_far) >= 2

    with open_slots(Pace()) as slots:
        assert run_trial(trial, 0.0, lambda _: None, slots, after_two) is False
    assert [epoch for epoch, _ in seen[-1]][:2] == [1, 2] and seen[0] == []
    assert list((trial.run / "checkpoints").iterdir()) and trial.result() is None
    assert "Stopped by SIGTERM" in (trial.folder / LOG_FILE).read_text()


def test_pruning_is_for_searches(tmp_path):
    with pytest.raises(UserError, match="--prune ends trials of a search early"):
        run_study("ablation", tiny_config(tmp_path), tmp_path / "study", 1, pace=Pace(prune=True))


@pytest.mark.slow
def test_training_ends_at_the_time_limit(tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    config.train.update(num_epochs=1_000_000, early_stopping_patience=0)
    monkeypatch.setitem(designs.STUDIES, "tiny", Study("?", (Variant("long"),)))
    run_study("tiny", config, tmp_path / "study", num_seeds=1, pace=Pace(minutes=0.5))
    [record] = (tmp_path / "study" / "results.jsonl").read_text().splitlines()
    assert json.loads(record)["time_limit_reached"] is True
    assert 1 < json.loads(record)["cost"]["epochs"] < 1_000_000


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_study_that_is_stopped_goes_on(tmp_path, way):
    """By SIGTERM, by Ctrl-C in a terminal, which all its processes get, or killed.

    What runs is saved: a trial ends with its study.
    """
    config = tiny_config(tmp_path)
    workdir = tmp_path / "study"
    flags = ("--mode=study", "--study=sparsity", "--seeds=1", "--config.train.num_epochs=100000",
             "--config.train.early_stopping_patience=0")  # fmt: skip
    first = workdir / "trials" / "TSSR-seed0"
    process = subprocess.Popen(
        command(config, workdir, *flags),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not (first / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    if way == signal.SIGINT:
        os.killpg(process.pid, way)
    else:
        process.send_signal(way)
    output, _ = process.communicate(timeout=120)
    if way == signal.SIGKILL:
        assert process.returncode == -way
    else:
        assert process.returncode == int(way == signal.SIGINT)
        assert b"goes on from what is complete" in output
    deadline = time.monotonic() + 60
    while "which is saved" not in " ".join((first / "log.txt").read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert not (first / "result.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--study=none",), "there are ablation, batch"),
        (("--study=sparsity", "--variant=none"), "it has: TSSR; ids only; content only."),
    ],
)
def test_what_is_not_known_is_told(tmp_path, flags, message):
    result = run_command(command(tiny_config(tmp_path), tmp_path / "study", "--mode=study", *flags))
    assert result.returncode == 1 and message in " ".join(result.stderr.split())


@pytest.mark.parametrize("mode", ["study", "search"])
def test_the_folder_of_a_run_is_refused(tmp_path, mode):
    (tmp_path / "data.json").write_text("{}")
    result = run_command(command(tiny_config(tmp_path), tmp_path, f"--mode={mode}"))
    assert result.returncode == 1 and "is the folder of a run" in " ".join(result.stderr.split())
