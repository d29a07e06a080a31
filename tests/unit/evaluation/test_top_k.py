"""Lists of the best items: against a whole sort, ties, devices."""

import numpy as np
import pytest

from tssr_jax.config import default
from tssr_jax.evaluation import ranking
from tssr_jax.evaluation.baselines import popularity_scorer
from tssr_jax.evaluation.metrics import popular_lists
from tssr_jax.evaluation.ranking import make_eval_step
from tssr_jax.evaluation.top_k import best_classes
from tssr_jax.models.apply import encode, head_weights
from tssr_jax.models.init import init_params, make_model
from tssr_jax.parallel import sharding
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.devices import CLASSES, ROWS, WHOLE, Devices

NUM_ITEMS, NUM_ROWS = 20, 24


@pytest.fixture(name="batch", scope="module")
def fixture_batch():
    rng = np.random.default_rng(0)
    excluded = np.full((NUM_ROWS, 4), -1, np.int32)
    for row in range(NUM_ROWS):
        number = rng.integers(0, 4)
        excluded[row, :number] = rng.choice(np.arange(1, NUM_ITEMS + 1), number, replace=False)
    excluded[:, 3] = 0
    return {
        "item_sequence": rng.integers(1, NUM_ITEMS + 1, (NUM_ROWS, 4)).astype(np.int32),
        "excluded": excluded,
        "answers": np.full(NUM_ROWS, 7, np.int32),
        "missed": np.arange(NUM_ROWS) == 9,
        "row_mask": np.arange(NUM_ROWS) != 5,
    }


def model_and_params(devices):
    config = default.get_config()
    config.model.update(d_model=8, d_ffn=8, num_heads=1, max_length=4, streams=("id",))
    model = make_model(config, devices.catalogue(NUM_ITEMS), devices.rows_axis)
    return model, init_params(model, {}, seed=0)


def by_sorting(scores, excluded, k):
    """Stable: of equal scores the lower class is first."""
    scores = np.array(scores, float)
    scores[:, 0] = -np.inf
    for own, gone in zip(scores, excluded, strict=True):
        own[gone[gone >= 0]] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def gone(batch):
    """What competes in no list: what is excluded, and answers that were seen before."""
    return np.c_[batch["excluded"], np.where(batch["missed"], batch["answers"], -1)]


def test_popular_lists_that_end_early():
    lists = popular_lists(np.array([9, 5, 7, 7]), np.array([[2, 0, -1], [1, 2, 3]]), 3)
    assert lists.tolist() == [[3, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("way", "users_at_a_time"),
    [(("pmap", 1), 24), (("pmap", 1), 5), (("pmap", 8), 24), (("shard_map", 8, 4), 24)],
    ids=str,
)
def test_the_model_s_lists_are_those_of_a_sort(batch, way, users_at_a_time, monkeypatch):
    monkeypatch.setattr(ranking, "SCORES_PER_TILE", users_at_a_time * (NUM_ITEMS + 1))
    alone, params = model_and_params(Devices("pmap", 1))
    states = encode(alone, params, batch["item_sequence"], None, last_only=True).fused[:, -1]
    scores = head_weights(alone, params, None).score(states, "float32")
    devices = Devices(*way)
    model, params = model_and_params(devices)
    layout = sharding.layout(params)
    step = devices.run(make_eval_step(model, k=6), inputs=(layout, ROWS, CLASSES))
    lists = np.asarray(step(devices.place(params, layout), batch, {}).lists)
    expected = by_sorting(scores, gone(batch), 6)
    expected[5] = -1  # a row that only fills the batch
    np.testing.assert_array_equal(lists, expected)


def test_of_equal_items_the_lower_id_is_first_and_nothing_is_made_up():
    scores = np.array([[9.0, 1.0, 2.0, 2.0, 2.0], [9.0, 1.0, 1.0, 1.0, 1.0]])
    excluded = np.array([[3, 0], [1, 4]])
    classes, values = best_classes(scores, excluded, 4, Catalogue(4))
    assert classes.tolist() == [[2, 4, 1, 0], [2, 3, 0, 0]]
    assert values.tolist() == [[2.0, 2.0, 1.0, -np.inf], [1.0, 1.0, -np.inf, -np.inf]]


def test_popular_items_that_a_user_has_not_seen(batch):
    counts = np.arange(NUM_ITEMS + 1) * 7 % 11  # with ties
    devices = Devices("pmap", 8)
    model, _ = model_and_params(devices)
    scorer = popularity_scorer(model.classes)
    step = devices.run(make_eval_step(model, scorer, 5), inputs=(WHOLE, ROWS, CLASSES))
    lists = np.asarray(step(counts, batch, {}).lists)
    expected = by_sorting(np.tile(counts, (NUM_ROWS, 1)), gone(batch), 5)
    np.testing.assert_array_equal(popular_lists(counts, gone(batch), 5), expected)
    expected[5] = -1
    np.testing.assert_array_equal(lists, expected)
