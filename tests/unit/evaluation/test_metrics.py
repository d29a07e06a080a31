"""Ranks and metrics against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tssr_jax.evaluation.evaluate import _table
from tssr_jax.evaluation.metrics import competitors_above, popularity_ranks, ranking_metrics
from tssr_jax.parallel.catalogue import Catalogue

SCORES = np.array([[9.0, 1.0, 5.0, 3.0, 3.0]])  # class 0 is padding


def rank(answer, excluded, scores=SCORES):
    catalogue = Catalogue(num_items=4)
    return int(competitors_above(scores, np.array([answer]), np.array([excluded]), catalogue)[0])


def test_rank_counts_competitors_above():
    assert rank(2, [0, -1, -1]) == 0
    assert rank(1, [0, -1, -1]) == 3


def test_padding_class_competes_unless_excluded():
    assert rank(2, [-1]) == 1
    assert rank(2, [0]) == 0


def test_seen_items_do_not_compete():
    assert rank(1, [0, 2, 4]) == 1


def test_an_answer_ties_with_itself_however_scores_are_computed():
    """A compiler may compute scores twice, here and there with another last digit."""
    rng = np.random.default_rng(0)
    shapes = ((400, 16), (16, 300), (400, 300), (300,))
    states, weights, likeness, frequency = (rng.random(x, np.float32) for x in shapes)

    def scores(states, likeness):
        return states @ weights + jnp.exp(frequency) * jnp.log1p(likeness) + frequency

    best = np.asarray(scores(states, likeness))[:, 1:].argmax(axis=1) + 1
    padding = np.zeros((400, 1), np.int32)

    @jax.jit
    def ranks(*inputs):
        return competitors_above(scores(*inputs), best, padding, Catalogue(299))

    assert np.unique(ranks(states, likeness)).tolist() == [0]


def test_ties_count_against_the_answer():
    assert rank(3, [0]) == 2  # 5.0 is above, the other 3.0 is tied
    assert rank(4, [0]) == 2


def test_a_model_that_scores_all_alike_gets_the_last_rank():
    assert rank(2, [0], np.zeros((1, 5))) == 3


def test_nan_scores_are_never_a_good_rank():
    assert rank(2, [0], np.full((1, 5), np.nan)) == 3
    assert rank(2, [0], np.array([[0, np.nan, 1.0, 0.0, 0.0]])) == 1


def test_metrics_by_hand():
    metrics = ranking_metrics(np.array([0, 9, 10, 99]))
    assert metrics["recall@10"] == 0.5
    assert metrics["recall@20"] == 0.75
    assert metrics["recall@100"] == 1.0
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / np.log2(11)) / 4)
    assert metrics["ndcg@100"] == pytest.approx(
        (1 + 1 / np.log2(11) + 1 / np.log2(12) + 1 / np.log2(101)) / 4
    )
    assert metrics["mrr"] == pytest.approx((1 + 1 / 10 + 1 / 11 + 1 / 100) / 4)
    assert metrics["num_users"] == 4


def test_every_user_weighs_the_same_unless_batch_means_are_asked_for():
    ranks = np.array([0, 1000, 0])  # batches of two: means 1/2 and 1
    assert ranking_metrics(ranks)["recall@10"] == pytest.approx(2 / 3)
    assert ranking_metrics(ranks, batch_size=2)["recall@10"] == pytest.approx(3 / 4)


def test_no_users_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        ranking_metrics(np.array([]))


def test_ranks_by_popularity_by_hand():
    counts = np.array([0, 5, 3, 3, 9, 0])
    answers = np.array([2, 4, 5, 1])
    excluded = np.array([[-1, -1], [1, 2], [4, -1], [4, 2]])
    # Item 2: 1, 3 and 4 are seen as often or more often. Item 5: all others but 4. Item 1: none.
    ranks = popularity_ranks(counts, answers, excluded)
    np.testing.assert_array_equal(ranks, [3, 0, 3, 0])


def test_a_model_that_misses_everything_has_rows_of_zeros():
    missed = {"ndcg@10": 0.0, "recall@10": 0.0, "num_users": 3}
    columns = {"validation": missed, "test": missed | {"coverage@10": 0.0}}
    table = _table("run", columns, {"popularity": {"ndcg@10": 0.5, "gini@10": 0.5}})
    assert list(table.columns[0].cells) == ["ndcg@10", "recall@10", "coverage@10"]
    assert list(table.columns[1].cells) == ["0.0000", "0.0000", ""]
