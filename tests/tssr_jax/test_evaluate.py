"""The switch of ranking: whose items are masked, and how users are averaged."""

from types import SimpleNamespace

import numpy as np

from configs import default
from data_pipeline.store import SequenceStore
from data_pipeline.tensorflow_cpu import tf
from tssr_jax.evaluate import make_eval_batches, split_metrics
from tssr_jax.parallel import Devices


def excluded(full_history):
    """One user with the items 1 to 6, windows of three: the answer is 6."""
    config = default.get_config()
    config.model.max_length = 3
    config.evaluate.batch_size = 1
    config.corrections.full_history_ranking = full_history
    store = SequenceStore.in_memory(tf.range(1, 7), tf.constant([0, 6], tf.int64))
    experiment = SimpleNamespace(config=config, sequences=store, devices=Devices("pmap", 1))
    (batch,) = make_eval_batches(experiment, "test")
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
