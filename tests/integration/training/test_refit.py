"""A run trained anew on what its validation asked for, and on all."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath

import tssr_jax
from tests.support.raw_data import tiny_config
from tests.support.runs import ROOT
from tssr_jax.config.saved import load_config, save_config
from tssr_jax.config.validation import validate_config
from tssr_jax.data_pipeline.gate_rows import trained_lengths
from tssr_jax.errors import UserError
from tssr_jax.evaluation.evaluate import evaluate, restore_best, run_baseline
from tssr_jax.memory.co_occurrence import training_events
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.runtime import StopRequest
from tssr_jax.training.loop import train
from tssr_jax.training.refit import best_epoch, refit


@pytest.fixture(name="workdir", scope="module")
def fixture_workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refit")
    config = tiny_config(folder)
    config.model.update(memory=("co_occurrence", "words", "popularity"), head="tied")
    config.memory.neighbours = 6
    config.train.update(num_epochs=4, early_stopping_patience=2, packing=True)
    train(config, folder / "run")
    return folder / "run"


def trained_items(run):
    """What training reads of each user: of its windows, counts and memories."""
    store = run.sequences
    events = training_events(store)
    assert len(events.items) == store.splits.trained.sum()
    return store.splits.trained, trained_lengths(store, run.config)


def test_what_validation_asked_for_is_trained(workdir, tmp_path, capsys):
    metrics = refit(workdir, tmp_path / "again")
    run, _, step = restore_best(tmp_path / "again")
    lengths, (trained, in_windows) = run.sequences.lengths, trained_items(run)
    np.testing.assert_array_equal(trained, lengths - 1)
    lent = in_windows < trained  # to the gate
    assert 0 < lent.sum() < 10 and (in_windows[~lent] == trained[~lent]).all()
    epochs = best_epoch(workdir)
    assert run.config.train.num_epochs == epochs and not run.config.train.early_stopping_patience
    records = [
        json.loads(x) for x in (tmp_path / "again" / "metrics.jsonl").read_text().split("\n") if x
    ]
    assert records[-1]["epoch"] == epochs and records[-1]["step"] == step
    assert not any("validation/ndcg@10" in record for record in records)
    # The test is that of the run before; validation was trained on, and is not told.
    with (
        np.load(tmp_path / "again" / "per_user.npz") as own,
        np.load(workdir / "per_user.npz") as old,
    ):
        np.testing.assert_array_equal(own["test_answer"], old["test_answer"])
        assert "validation_rank" not in own
    assert not (tmp_path / "again" / "validation_metrics.json").exists()
    told = capsys.readouterr().out
    assert "best -1" not in told and "validation │" not in told
    assert evaluate(tmp_path / "again")["ndcg@10"] == pytest.approx(metrics["ndcg@10"])
    own = Recommender.from_workdir(tmp_path / "again")
    assert not own.metrics.validation and own.metrics.test["ndcg@10"] == metrics["ndcg@10"]
    own.save(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "retrained with the validation targets" in card and "| | test |" in card


def test_everything_is_trained(workdir, tmp_path):
    assert refit(workdir, tmp_path / "all", everything=True) == {}
    run, *_ = restore_best(tmp_path / "all")
    np.testing.assert_array_equal(trained_items(run)[0], run.sequences.lengths)
    assert not (tmp_path / "all" / "test_metrics.json").exists()
    with pytest.raises(UserError, match="was trained on all of its data"):
        evaluate(tmp_path / "all")
    assert Recommender.from_workdir(tmp_path / "all").recommend([["i3", "i4"]], 3)[0].items


def test_the_command(workdir, tmp_path):
    command = [sys.executable, "-m", "tssr_jax.main", "refit", f"--workdir={tmp_path / 'again'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode and "--run=FOLDER is required" in done.stderr
    command += [f"--run={workdir}", "--everything"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert load_config(epath.Path(tmp_path / "again")).evaluate.held_out == ()


def test_a_refit_goes_on_where_it_was_stopped(workdir, tmp_path):
    whole = refit(workdir, tmp_path / "whole")
    config = restore_best(tmp_path / "whole")[0].config
    stop = StopRequest(1e-9)
    assert train(config, tmp_path / "parts", stop) is None
    assert refit(workdir, tmp_path / "parts") == whole
    params = [restore_best(tmp_path / name)[1] for name in ("whole", "parts")]
    jax.tree.map(np.testing.assert_array_equal, *params)


def test_by_one_date_training_reads_up_to_the_test(workdir, tmp_path):
    config = restore_best(workdir)[0].config
    config.evaluate.update(split="global_time", cuts=("1970-01-01", "1970-01-02"))
    path = tmp_path / "raw"
    path.mkdir()
    rng = np.random.default_rng(0)
    rows = [f"u{u},i{rng.integers(20)},{d * 40_000 + u}" for u in range(40) for d in range(6)]
    (path / "interactions.csv").write_text("user,item,timestamp\n" + "\n".join(rows) + "\n")
    items = (workdir.parent / "raw" / "items.csv").read_text()
    (path / "items.csv").write_text(items)
    config.data.raw_dir = str(path)
    config.evaluate.cuts = ("1970-01-02", "1970-01-03")
    config.train.num_epochs = 1
    train(config, tmp_path / "run")
    refit(tmp_path / "run", tmp_path / "again")
    before, after = (restore_best(tmp_path / name)[0] for name in ("run", "again"))
    store = after.sequences
    two_days = [
        int((store.rows(np.array([u])).times(store.lengths[u : u + 1], 9).numpy() < 2 * 1440).sum())
        - (9 - store.lengths[u])
        for u in range(store.lengths.size)
    ]
    assert store.splits.trained.tolist() == two_days
    assert (before.sequences.splits.trained < store.splits.trained).any()
    assert "training also reads all that is not held out" in store.splits.told


def test_a_baseline_counts_more_as_well(workdir, tmp_path):
    config = restore_best(workdir)[0].config
    config.baseline.kind = "popularity"
    metrics = run_baseline(config, tmp_path / "plain")
    config.evaluate.held_out = ("test",)
    assert run_baseline(config, tmp_path / "more") != metrics
    config.evaluate.held_out = ()
    with pytest.raises(UserError, match="nothing to measure a baseline by"):
        validate_config(config)
    with pytest.raises(UserError, match="is a run of the baseline 'popularity', which chose no"):
        refit(tmp_path / "plain", tmp_path / "again")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"evaluate.held_out": ("validation",)}, "held_out is .*; it must be one of"),
        (
            {"evaluate.held_out": ("test",), "train.early_stopping_patience": 3},
            "leaves nothing to validate.*`tssr refit`",
        ),
    ],
)
def test_fields_that_make_no_sense(tmp_path, fields, told):
    config = tiny_config(tmp_path)
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=told):
        validate_config(config)


def test_a_warm_start_without_an_epoch_counts_more(workdir, tmp_path):
    config = restore_best(workdir)[0].config
    config.train.update(warm_start=str(workdir), num_epochs=0)
    train(config, tmp_path / "warm")
    assert refit(tmp_path / "warm", tmp_path / "all", everything=True) == {}
    warm, more = (restore_best(tmp_path / name) for name in ("warm", "all"))
    jax.tree.map(np.testing.assert_array_equal, warm[1], more[1])
    counts = [own[0].content.memories.popularity.scores for own in (warm, more)]
    assert np.abs(np.asarray(counts[0]) - np.asarray(counts[1])).max() > 1e-3


def test_a_run_that_was_never_validated(tmp_path):
    config = tiny_config(tmp_path)
    config.train.num_epochs = 0
    train(config, tmp_path / "run")
    with pytest.raises(UserError, match="was better than its start"):
        refit(tmp_path / "run", tmp_path / "again")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"has no validation in metrics\.jsonl"):
        tssr_jax.refit(str(tmp_path / "run"), epath.Path(tmp_path / "again"))
    (tmp_path / "run" / "test_metrics.json").unlink()
    with pytest.raises(UserError, match="has not ended"):
        refit(tmp_path / "run", tmp_path / "again")


def test_a_refit_is_no_start_for_what_it_has_learnt(workdir, tmp_path):
    refit(workdir, tmp_path / "all", everything=True)
    config = restore_best(workdir)[0].config
    config.train.warm_start = str(tmp_path / "all")
    with pytest.raises(UserError, match="was trained on its test and validation targets, too"):
        train(config, tmp_path / "leaking")
    config.train.warm_start, config.train.num_epochs = str(workdir), 1
    train(config, tmp_path / "warm")
    config.train.warm_start = str(tmp_path / "now")
    save_config(config, tmp_path / "warm")
    (tmp_path / "now").symlink_to(tmp_path / "warm")
    with pytest.raises(UserError, match="and that path now leads to"):
        refit(tmp_path / "warm", tmp_path / "again")


def test_a_run_that_was_extended_has_another_refit(workdir, tmp_path):
    refit(workdir, tmp_path / "again")
    config = restore_best(tmp_path / "again")[0].config
    config.train.num_epochs += 1
    save_config(config, tmp_path / "again")
    with pytest.raises(UserError, match=r"holds a refit of \d epochs, and .* is best after"):
        refit(workdir, tmp_path / "again")
