"""Baselines: months by hand, and whole evaluations."""

import json

import numpy as np
import pytest

from tests.support.counted import events_of
from tests.support.raw_data import tiny_config, write_csv
from tssr_jax.config.saved import save_config
from tssr_jax.config.validation import validate_config
from tssr_jax.errors import UserError
from tssr_jax.evaluation.baselines import (
    learn_baseline,
    month_popularity_scorer,
    monthly_counts,
)
from tssr_jax.evaluation.evaluate import PER_USER_FILE, evaluate_baseline, run_baseline
from tssr_jax.run import build_run
from tssr_jax.training.loop import train


@pytest.mark.parametrize(
    "kind", ["popularity", "month_popularity", "nearest_texts", "own_items", "item_knn"]
)
def test_a_baseline_is_evaluated_like_a_run(tmp_path, kind):
    config = tiny_config(tmp_path)
    config.model.streams = ("id",)
    config.baseline.kind = kind
    config.evaluate.list_length = 10
    metrics = run_baseline(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "test_metrics.json").read_text()) == metrics
    assert metrics["num_users"] == 40 and metrics["recall@100"] == 1.0
    with np.load(tmp_path / "run" / PER_USER_FILE) as users:
        assert users["test_rank"].shape == (40,)
        np.testing.assert_allclose((users["test_rank"] < 10).mean(), metrics["recall@10"])
    if kind == "item_knn":  # users walk along the items: the next one is near
        assert metrics["recall@10"] == 1.0
    elif kind == "popularity":
        assert metrics["serendipity@10"] == 0.0


def test_popularity_of_the_month_by_hand(tmp_path):
    month = 30 * 1440
    items, months = np.array([1, 1, 2, 3, 3, 3, 2]), np.array([5, 5, 5, 6, 6, 6, 8])
    events = events_of(np.array([0, 7]), items, months * month + np.arange(7))
    counts, first = monthly_counts(events, 3)
    params = {"months": counts, "first": first, "popularity": np.array([0, 0.3, 0.2, 0.1])}
    times = month * np.array([[0, 4], [0, 5], [0, 6], [0, 7], [0, 8], [0, 9]]) + 7
    rows, score = month_popularity_scorer()(params, {"times": times}, {})
    own = [[0, 2, 1, 0], [0, 2, 1, 0], [0, 2, 1, 3], [0, 0, 0, 3], [0, 0, 1, 0], [0, 0, 1, 0]]
    np.testing.assert_allclose(score(rows), own + params["popularity"], rtol=1e-6)


def test_neighbours_have_both_kinds(tmp_path):
    config = tiny_config(tmp_path)
    config.memory.neighbours = 4
    run = build_run(config)
    both, of_words = (
        learn_baseline(run, kind)[0]["neighbours"] for kind in ("item_knn", "nearest_texts")
    )
    assert both.classes.shape == (21, 8)
    np.testing.assert_array_equal(both.classes[:, 4:], of_words.classes)
    np.testing.assert_allclose(both.likeness[:, 4:], 0.07 * of_words.likeness, rtol=1e-6)
    config.memory.words = 0.0
    alone = learn_baseline(run, "item_knn")[0]["neighbours"]
    np.testing.assert_array_equal(alone.classes, both.classes[:, :4])


def test_what_is_taken_again_counts_by_hand(tmp_path):
    config = tiny_config(tmp_path)
    config.memory.words, config.model.max_length = 0.0, 4
    config.evaluate.keep_seen = True
    run = build_run(config)
    items = np.array([[0, 3, 3, 5]], np.int32)
    batch = {"item_sequence": items, "times": 10 * (items > 0) * np.arange(4)}

    def scores(kind):
        params, scorer = learn_baseline(run, kind)
        rows, score = scorer(params, batch, {})
        return np.asarray(score(rows))[0] - params["popularity"], params

    own, _ = scores("own_items")
    expected = np.zeros(run.data.num_items + 1)
    expected[[3, 5]] = [4e-6, 2e-6]
    np.testing.assert_allclose(own, expected, atol=1e-11)
    both, params = scores("item_knn")
    # Nobody takes an item twice here: all rates are 0. With one of 0.5 for each:
    np.testing.assert_array_equal(params["again"].likeness, 0)
    half = params["again"]._replace(likeness=np.full((run.data.num_items + 1, 1), 0.5, np.float32))
    _, scorer = learn_baseline(run, "item_knn")
    rows, score = scorer({**params, "again": half}, batch, {})
    expected[[3, 5]] = [0.5 * (0.97 + 0.97**2), 0.5]
    np.testing.assert_allclose(
        np.asarray(score(rows))[0] - params["popularity"] - both, expected, atol=1e-6
    )
    config.evaluate.keep_seen = False
    assert "again" not in scores("item_knn")[1]


@pytest.mark.parametrize("memory", [(), ("words",)], ids=str)
def test_simple_rankings_stand_beside_a_model(tmp_path, capsys, memory):
    config = tiny_config(tmp_path)
    config.model.memory = memory
    config.train.num_epochs = 1
    train(config, tmp_path / "run")
    output = capsys.readouterr().out
    simple = []
    for kind in ("popularity", "item_knn"):
        config.baseline.kind, config.model.memory = kind, ()
        simple.append(run_baseline(config, tmp_path / kind))
    for name in ("ndcg@10", "recall@20", "mrr"):
        row = next(line for line in output.splitlines() if f"│ {name} " in line)
        assert row.split()[-4::2] == [f"{metrics[name]:.4f}" for metrics in simple]


@pytest.mark.parametrize("kind", ["popularity", "item_knn"])
def test_data_without_a_training_window_is_told(tmp_path, kind):
    config = tiny_config(tmp_path)
    config.data.update(min_user_interactions=3, min_item_interactions=1)
    config.baseline.kind = kind
    rows = (f"u{user},i{user + step},{step}\n" for user in range(5) for step in range(3))
    (tmp_path / "raw" / "interactions.csv").write_text("user,item,timestamp\n" + "".join(rows))
    with pytest.raises(UserError, match="No user has the 4 interactions"):
        run_baseline(config, tmp_path / "run")
    config.baseline.kind = ""
    for number, settings in enumerate(({}, {"model.head": "content", "loss.next_item": "sampled"})):
        config.update_from_flattened_dict(settings)
        with pytest.raises(UserError, match="No user has the 4 interactions"):
            train(config, tmp_path / f"trained{number}")


def test_evaluated_again_where_there_are_fewer_devices(tmp_path):
    config = tiny_config(tmp_path)
    config.baseline.kind = "item_knn"
    config.num_devices = 2
    metrics = run_baseline(config, tmp_path / "run")
    config.num_devices = 64  # as if it had been another machine
    save_config(config, tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_text()
    assert evaluate_baseline(tmp_path / "run") == metrics
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_a_run_on_other_data_is_left_alone(tmp_path):
    config = tiny_config(tmp_path)
    config.baseline.kind = "popularity"
    run_baseline(config, tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_text()
    config.data.raw_dir = str(write_csv(tmp_path / "others", seed=1))
    with pytest.raises(UserError, match="The data is not that of the run"):
        run_baseline(config, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_a_folder_of_another_run_is_left_alone(tmp_path):
    config = tiny_config(tmp_path)
    save_config(config, tmp_path)
    before = (tmp_path / "config.json").read_text()
    config.baseline.kind = "popularity"
    with pytest.raises(UserError, match=r"another configuration; it differs in baseline\.kind"):
        run_baseline(config, tmp_path)
    assert (tmp_path / "config.json").read_text() == before


def test_a_cut_catalogue_is_an_error(tmp_path):
    config = tiny_config(tmp_path)
    config.update(parallel="shard_map", model_devices=2)
    config.baseline.kind = "item_knn"
    with pytest.raises(UserError, match="model_devices is 2"):
        validate_config(config)
