"""Baselines: neighbours by hand, scores against a dense sum, a whole evaluation."""

import json

import numpy as np
import pytest

from tests.support.raw_data import tiny_config, write_csv
from tssr_jax.config.saved import save_config
from tssr_jax.config.validation import validate_config
from tssr_jax.data_pipeline.store import SequenceStore
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.errors import UserError
from tssr_jax.evaluation import baselines
from tssr_jax.evaluation.baselines import item_knn_scorer, item_neighbours
from tssr_jax.evaluation.evaluate import PER_USER_FILE, evaluate_baseline, run_baseline
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.training.loop import train


def store_of(*sequences):
    """Each sequence is what training sees; two more items are held out."""
    whole = [[*sequence, 4, 4] for sequence in sequences]
    ends = np.cumsum([0, *map(len, whole)])
    return SequenceStore.in_memory(tf.constant(np.concatenate(whole)), tf.constant(ends, tf.int64))


@pytest.mark.parametrize("items_at_a_time", [2, 1024])
def test_neighbours_by_hand(items_at_a_time, monkeypatch):
    monkeypatch.setattr(baselines, "_ITEMS_AT_A_TIME", items_at_a_time)
    # Users have items 1 and 2, 1 and 2 (twice), 2 and 3: n = 2, 3, 1, and item 4 held out only.
    neighbours, likeness = item_neighbours(store_of([1, 2], [1, 2, 2], [2, 3]), 4, 2, 1.0)
    one_two, two_three = 2 / (np.sqrt(6) + 1), 1 / (np.sqrt(3) + 1)
    assert neighbours[1, 0] == 2 and neighbours[2].tolist() == [1, 3] and neighbours[3, 0] == 2
    np.testing.assert_allclose(
        likeness,
        [[0, 0], [one_two, 0], [one_two, two_three], [two_three, 0], [0, 0]],
        rtol=1e-6,
    )


def test_items_that_are_held_out_of_training_are_nobodys_neighbours():
    store = store_of([1, 2, 3], [1, 2], [2, 3])
    held_out = np.array([False, False, True, False, False])
    neighbours, likeness = item_neighbours(store, 4, 2, 1.0, held_out=held_out)
    # Without item 2: users have 1 and 3, 1 alone, 3 alone.
    assert neighbours[1, 0] == 3 and neighbours[3, 0] == 1
    np.testing.assert_allclose(likeness[[1, 3], 0], 1 / (np.sqrt(2 * 2) + 1), rtol=1e-6)
    assert not likeness[2].any() and not likeness[:, 1].any()


def test_scores_are_those_of_the_whole_matrix():
    rng = np.random.default_rng(0)
    likeness = np.where(rng.random((7, 7)) < 0.5, rng.random((7, 7)), 0.0)
    np.fill_diagonal(likeness, 0.0)
    order = np.argsort(-likeness, axis=1)
    params = {
        "neighbours": order,
        "likeness": np.take_along_axis(likeness, order, axis=1),
        "popularity": rng.random(7),
    }
    windows = np.array([[0, 0, 3], [2, 5, 2], [0, 0, 0]])
    rows, score = item_knn_scorer(Catalogue(6), 0.5)(params, {"item_sequence": windows}, {})
    expected = [likeness[3], likeness[2] + 0.5 * likeness[5] + 0.25 * likeness[2], np.zeros(7)]
    np.testing.assert_allclose(score(rows), expected + params["popularity"], rtol=1e-6)


@pytest.mark.parametrize("kind", ["popularity", "item_knn"])
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
    else:
        assert metrics["serendipity@10"] == 0.0


def test_simple_rankings_stand_beside_a_model(tmp_path, capsys):
    config = tiny_config(tmp_path)
    config.train.num_epochs = 1
    train(config, tmp_path / "run")
    output = capsys.readouterr().out
    simple = []
    for kind in ("popularity", "item_knn"):
        config.baseline.kind = kind
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
