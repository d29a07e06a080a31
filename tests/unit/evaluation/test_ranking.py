"""Ranking: whose items are masked, how users are averaged, and how many are ranked at a time."""

from types import SimpleNamespace

import numpy as np
import pytest

from tssr_jax.config import default
from tssr_jax.data_pipeline.store import SequenceStore
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.evaluation import ranking
from tssr_jax.evaluation.evaluate import make_eval_batches, split_metrics
from tssr_jax.evaluation.ranking import make_eval_step
from tssr_jax.models.init import init_params, make_model
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.devices import Devices


def excluded(full_history):
    """One user with the items 1 to 6, windows of three: the answer is 6."""
    config = default.get_config()
    config.model.max_length = 3
    config.evaluate.batch_size = 1
    config.corrections.full_history_ranking = full_history
    store = SequenceStore.in_memory(tf.range(1, 7), tf.range(6), tf.constant([0, 6], tf.int64))
    run = SimpleNamespace(config=config, sequences=store, devices=Devices("pmap", 1))
    (batch,) = make_eval_batches(run, "test")
    return {int(i) for i in batch["excluded"][0] if i > 0}


def test_the_whole_history_is_masked_or_the_window_alone():
    assert excluded(full_history=True) == {1, 2, 3, 4, 5}
    assert excluded(full_history=False) == {3, 4, 5}


def test_every_user_weighs_the_same_or_every_batch():
    config = default.get_config()
    config.evaluate.batch_size = 2
    ranks = np.array([0, 0, 50])  # batches of two and of one
    np.testing.assert_allclose(
        split_metrics(SimpleNamespace(config=config, known=None), None, ranks)["recall@10"], 2 / 3
    )
    config.corrections.full_history_ranking = False
    np.testing.assert_allclose(
        split_metrics(SimpleNamespace(config=config, known=None), None, ranks)["recall@10"],
        (1 + 0) / 2,
    )


@pytest.mark.parametrize("users_at_a_time", [1, 3, 5, 7])
def test_users_are_ranked_some_at_a_time(users_at_a_time, monkeypatch):
    config = default.get_config()
    config.model.update(d_model=8, d_ffn=8, num_heads=1, max_length=4, streams=("id",))
    model = make_model(config, Catalogue(20))
    params = init_params(model, {}, seed=0)
    rng = np.random.default_rng(0)
    batch = {
        "item_sequence": rng.integers(1, 21, (7, 4)),
        "answers": rng.integers(1, 21, 7),
        "missed": np.zeros(7, bool),
        "excluded": np.tile(np.array([0, -1]), (7, 1)),
        "row_mask": np.arange(7) < 6,
    }
    whole = make_eval_step(model)(params, batch, None).ranks
    assert whole[6] == -1 and len(np.unique(whole)) > 3
    monkeypatch.setattr(ranking, "SCORES_PER_TILE", users_at_a_time * 21)
    np.testing.assert_array_equal(make_eval_step(model)(params, batch, None).ranks, whole)
