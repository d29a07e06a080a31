"""A search of settings: its space, that it finds what is better, that it goes on."""

import json
import os
import shlex
import threading

import pytest

from tests.support.raw_data import tiny_config
from tssr_jax.config import default
from tssr_jax.errors import UserError
from tssr_jax.studies import search as search_module
from tssr_jax.studies.search import JOURNAL_FILE, search
from tssr_jax.studies.slots import Pace, validations
from tssr_jax.studies.space import Dimension, counts, parse_space


def space(*texts):
    config = default.get_config()
    config.search.space = texts
    return parse_space(config)


def test_a_space_by_hand():
    assert space(
        "optimizer.learning_rate: log 1e-4 1", "model.d_model: choice 32 64",
        "model.num_cross_layers:range 1 4", "loss.next_item: choice 'full' 'sampled'",
        "model.streams: choice ('id',) ('content',)",
    ) == [
        Dimension("optimizer.learning_rate", "log", (1e-4, 1.0)),
        Dimension("model.d_model", "choice", (32, 64)),
        Dimension("model.num_cross_layers", "range", (1, 4)),
        Dimension("loss.next_item", "choice", ("full", "sampled")),
        Dimension("model.streams", "choice", (("id",), ("content",))),
    ]  # fmt: skip
    assert len(parse_space(default.get_config())) == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.d_model: between 1 2", "must look like"),
        ("model.d_model: range 1", "must look like"),
        ("model.d_model: range 1 a b", "must look like"),
        ("model.d_model", "must look like"),
        ("model.width: range 1 2", "names 'model.width'"),
        ("loss.lambda_user: log 0.0 1.0", "0 < A < B"),
        ("model.dropout_rate: range 0.5 0.1", "must be A < B"),
        ("model.num_unimodal_layers: range 1.0 2.0", "has 1.0 for .*: float is not its type"),
        ("optimizer.learning_rate: choice 'a' 1e-3", "has 'a' for .*: str is not its type"),
        ("train.packing: range 0 1", "has 0 for .*: int is not its type"),
    ],
)
def test_a_wrong_space_is_told(text, message):
    with pytest.raises(UserError, match=message):
        space(text)


def test_an_empty_space_is_told():
    with pytest.raises(UserError, match="is empty"):
        space()


@pytest.mark.parametrize(
    ("kind", "streams", "fields"),
    [
        ("", ("id", "content"), "lr cross hidden heads window"),
        ("", ("id",), "lr heads window"),
        ("gru", ("id",), "lr window"),
        ("", ("sum",), "lr hidden heads window"),
        ("", ("content",), "lr hidden heads window"),
        ("item_knn", ("id", "content"), "neighbours window"),
        ("popularity", ("id",), ""),
        ("nearest_texts", ("id",), "neighbours window"),
        ("memory", ("id",), "lr heads neighbours window"),
    ],
)
def test_what_a_configuration_reads(kind, streams, fields):
    config = default.get_config()
    config.model.streams = streams
    if kind == "gru":
        config.model.encoder = kind
    elif kind == "memory":
        config.model.memory = ("words",)
    else:
        config.baseline.kind = kind
    names = {
        "lr": "optimizer.learning_rate",
        "cross": "model.num_cross_layers",
        "hidden": "model.content_hidden",
        "heads": "model.num_heads",
        "neighbours": "memory.neighbours",
        "window": "model.max_length",
    }
    assert [name for name, field in names.items() if counts(field, config)] == fields.split()


@pytest.fixture(name="config")
def fixture_config(tmp_path):
    config = tiny_config(tmp_path)
    config.model.streams = ("id",)
    config.search.space = ("optimizer.learning_rate: log 1e-4 1e-1",)
    return config


def test_it_finds_what_is_better_and_goes_on(config, tmp_path, monkeypatch, capsys):
    """Trials are not run: the objective is a function of the step size, best at 0.01."""
    ran = []

    def run_trial(trial, *_, **__):
        rate = trial.config.optimizer.learning_rate
        ran.append(rate)
        if len(ran) == 3:
            return False  # fails
        value = 1.0 / (1.0 + abs(rate - 0.01))
        result = {"metrics": {"validation": {"ndcg@10": value}}}
        (trial.folder / "result.json").write_text(json.dumps(result))
        if len(ran) == 6:
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(search_module, "run_trial", run_trial)
    with pytest.raises(KeyboardInterrupt):
        search(config, tmp_path / "search", 8)
    journal = tmp_path / "search" / JOURNAL_FILE
    with journal.open("a") as file:
        file.write('{"op_code": 4, "worker_id"')  # killed while it wrote a line
    search(config, tmp_path / "search", 8)
    # The sixth was stopped after its end: what it found counts, nothing is run twice.
    assert len(ran) == len(set(ran)) == 8
    assert ran[0] == config.optimizer.learning_rate
    best = json.loads((tmp_path / "search" / "best.json").read_text())
    nearest = min((rate for i, rate in enumerate(ran) if i != 2), key=lambda r: abs(r - 0.01))
    assert best["changes"] == {"optimizer.learning_rate": nearest} and best["trials"] == 7
    told = capsys.readouterr().out
    assert "failed" in told and "the last line is cut" in told


# Validation NDCG@10 at epochs 1, 2, ... of five whole trials, whose medians are 3, 4, ... 9 and 10.
WHOLE = [[rate + epoch for epoch in range(8)] for rate in (1, 2, 3, 4, 5)]
CURVES = [
    # Below the median everywhere: each trial has five epochs, the fifth ends it.
    ([0, 1, 1, 1, 1, 1, 1, 1], 5),
    # A late one, whose best so far is above the median when it counts.
    ([0, 0, 0, 0, 7.5, 8.5, 20, 6], None),
    # It falls behind the median of six, 9.5 at epoch 7; whole, it would have won.
    ([9, 9, 9, 9, 9, 9, 9, 100], 7),
]


@pytest.mark.parametrize("prune", [True, False])
def test_pruning_by_hand(config, tmp_path, monkeypatch, capsys, prune):
    """The pruner asks for the best so far, and compares it with the median of whole trials."""
    curves = WHOLE + [curve for curve, _ in CURVES]
    ran, ended = [], []

    def run_trial(trial, *_, hopeless, **__):
        curve = curves[len(ran)]
        ran.append(trial)
        for epoch in range(1, len(curve) + 1):
            write_validations(trial, curve[:epoch])
            if hopeless(validations(trial)):
                ended.append((len(ran) - 1, epoch))
                return False
        result = {"metrics": {"validation": {"ndcg@10": max(curve)}}}
        (trial.folder / "result.json").write_text(json.dumps(result))
        return True

    monkeypatch.setattr(search_module, "run_trial", run_trial)
    search(config, tmp_path / "search", len(curves), Pace(prune=prune))
    expected = [(5 + i, epoch) for i, (_, epoch) in enumerate(CURVES) if epoch]
    assert ended == (expected if prune else [])
    best = json.loads((tmp_path / "search" / "best.json").read_text())
    winner = ran[6] if prune else ran[7]
    assert best["validation"] == {"ndcg@10": 20 if prune else 100}
    assert best["changes"] == winner.changes and best["trials"] == len(ran) - len(ended)
    told = capsys.readouterr().out
    assert ("ended early, at epoch 7, validation ndcg@10 9.0000" in told) == prune
    # All are done: the same command only reads them, and a pruned one is not tried again.
    search(config, tmp_path / "search", len(curves), Pace(prune=prune))
    assert len(ran) == len(curves)


def write_validations(trial, values):
    """Writes metrics.jsonl as a training does, with records of losses in between."""
    trial.run.mkdir(exist_ok=True)
    lines = [
        json.dumps(record)
        for i, value in enumerate(values)
        for record in (
            {"epoch": i + 1, "train/total": 1},
            {"epoch": i + 1, "validation/ndcg@10": value},
        )
    ]
    (trial.run / "metrics.jsonl").write_text("\n".join([*lines, '{"epoch": 9, "valid']))


def test_own_values_outside_the_space_are_told(config, tmp_path, monkeypatch, capsys):
    ran = []

    def run_trial(trial, *_, **__):
        ran.append(trial.config.model.dropout_rate)
        result = {"metrics": {"validation": {"ndcg@10": 0.5}}}
        (trial.folder / "result.json").write_text(json.dumps(result))
        return True

    monkeypatch.setattr(search_module, "run_trial", run_trial)
    config.search.space = (
        "model.dropout_rate: range 0.2 0.3",
        "optimizer.clip_norm: choice 0.0 1.0",
    )
    config.model.dropout_rate = 0.4
    search(config, tmp_path / "search", 2)
    assert "own model.dropout_rate lies outside the space" in " ".join(
        capsys.readouterr().out.split()
    )
    assert all(0.2 <= rate <= 0.3 for rate in ran)


def test_choices_may_be_tuples(config, tmp_path, monkeypatch, capsys):
    """The first trial has the configuration's own; a search that goes on reads them from a file."""
    ran = []

    def run_trial(trial, *_, **__):
        ran.append(trial.config.model.streams)
        value = 0.1 * len(trial.config.model.streams) + (trial.config.model.streams == ("sum",))
        result = {"metrics": {"validation": {"ndcg@10": value}}}
        (trial.folder / "result.json").write_text(json.dumps(result))
        return True

    monkeypatch.setattr(search_module, "run_trial", run_trial)
    config.search.space = ("model.streams: choice ('id',) ('content',) ('sum',)",)
    for number in (3, 30):
        best = search(config, tmp_path / "search", number)
    assert ran[0] == ("id",) and set(ran) == {("id",), ("content",), ("sum",)}
    assert best == {"model.streams": ("sum",)}
    flag = capsys.readouterr().out.rpartition("best: ")[2]
    assert shlex.split(flag) == ["--config.model.streams=('sum',)"]


def test_another_configuration_is_not_mixed_in(config, tmp_path, monkeypatch):
    def run_trial(trial, *_, **__):
        result = {"metrics": {"validation": {"ndcg@10": 0.5}}}
        (trial.folder / "result.json").write_text(json.dumps(result))
        return True

    monkeypatch.setattr(search_module, "run_trial", run_trial)
    search(config, tmp_path / "search", 1)
    config.model.d_model = 8
    with pytest.raises(UserError, match=r"another configuration.*model\.d_model"):
        search(config, tmp_path / "search", 2)
    config.model.d_model = 16
    config.search.space = (*config.search.space, "optimizer.clip_norm: choice 0.0 1.0")
    with pytest.raises(UserError, match="a search of another space"):
        search(config, tmp_path / "search", 2)
    (tmp_path / "search" / "config.json").unlink()
    with pytest.raises(UserError, match=r"holds a search, but not its config\.json"):
        search(config, tmp_path / "search", 2)


def test_where_no_trial_succeeded_they_are_tried_again(config, tmp_path, monkeypatch):
    ran = []

    def run_trial(trial, *_, **__):
        ran.append(trial.config.optimizer.learning_rate)
        if len(ran) <= 2:
            return False  # for a cause that goes away
        result = {"metrics": {"validation": {"ndcg@10": 0.5}}}
        (trial.folder / "result.json").write_text(json.dumps(result))
        return True

    monkeypatch.setattr(search_module, "run_trial", run_trial)
    with pytest.raises(UserError, match="No trial succeeded"):
        search(config, tmp_path / "search", 2)
    search(config, tmp_path / "search", 2)
    assert ran[2:] == ran[:2] and ran[0] == config.optimizer.learning_rate
    search(config, tmp_path / "search", 2)
    assert len(ran) == 4


def test_a_space_of_which_nothing_is_read(config, tmp_path):
    config.search.space = ("loss.lambda_user: log 0.1 1.0", "memory.decay: range 0.5 1.0")
    with pytest.raises(UserError, match=r"lambda_user, memory\.decay; this configuration reads no"):
        search(config, tmp_path / "search", 1)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_trials_side_by_side(config, tmp_path, monkeypatch):
    """Two wait for each other, so they must run at once; there are never more than asked for."""
    both, ran = threading.Barrier(2, timeout=60), []

    def run_trial(trial, *_, **__):
        both.wait()
        ran.append(trial.config.optimizer.learning_rate)
        result = {"metrics": {"validation": {"ndcg@10": ran[-1]}}}
        (trial.folder / "result.json").write_text(json.dumps(result))
        return True

    monkeypatch.setattr(search_module, "run_trial", run_trial)
    best = search(config, tmp_path / "search", 4, Pace(at_once=2))
    assert len(set(ran)) == 4 and best == {"optimizer.learning_rate": max(ran)}


def test_values_that_do_not_go_together_are_told_and_the_others_run(
    config, tmp_path, monkeypatch, capsys
):
    def run_trial(trial, *_, **__):
        result = {"metrics": {"validation": {"ndcg@10": 0.5}}}
        (trial.folder / "result.json").write_text(json.dumps(result))
        return True

    monkeypatch.setattr(search_module, "run_trial", run_trial)
    config.search.space = ("model.num_heads: choice 2 3",)  # of a width of 16
    assert search(config, tmp_path / "search", 6) == {"model.num_heads": 2}
    told = " ".join(capsys.readouterr().out.split())
    assert "3 heads" in told and "failed" in told
    found = json.loads((tmp_path / "search" / "best.json").read_text())
    assert 0 < found["trials"] < 6


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_the_same_values_are_run_once(config, tmp_path, monkeypatch):
    ran = []

    def run_trial(trial, *_, **__):
        ran.append(trial.folder)
        result = {"metrics": {"validation": {"ndcg@10": 0.5}}}
        (trial.folder / "result.json").write_text(json.dumps(result))
        return True

    monkeypatch.setattr(search_module, "run_trial", run_trial)
    config.search.space = ("optimizer.learning_rate: choice 0.5",)
    assert search(config, tmp_path / "search", 3, Pace(at_once=2)) == {
        "optimizer.learning_rate": 0.5
    }
    assert len(ran) == 1
    assert json.loads((tmp_path / "search" / "best.json").read_text())["trials"] == 3


@pytest.mark.slow
def test_a_real_search_of_one_trial(config, tmp_path):
    config.train.num_epochs = 1
    config.search.space = ("optimizer.learning_rate: log 1e-3 1e-2",)
    found = search(config, tmp_path / "search", 1)
    [trial] = (tmp_path / "search" / "trials").iterdir()
    saved = json.loads((trial / "config.json").read_text())
    assert saved["optimizer"]["learning_rate"] == found["optimizer.learning_rate"]
    assert 1e-3 <= found["optimizer.learning_rate"] <= 1e-2
    value = json.loads((trial / "run" / "validation_metrics.json").read_text())["ndcg@10"]
    assert json.loads((tmp_path / "search" / "best.json").read_text())["validation"] == {
        "ndcg@10": value
    }
