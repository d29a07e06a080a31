"""Metrics of recommendation lists, worked out by hand."""

import numpy as np
import pytest

from tssr_jax.evaluation import list_metrics
from tssr_jax.evaluation.list_metrics import diversity, gini, novelty, popularity_lift, serendipity

# Three users, lists of two, a catalogue of four items: item 1 three times, 2 twice, 3 once.
LISTS = np.array([[1, 2], [1, 2], [1, 3]])
COUNTS = np.array([0, 8, 4, 4, 0])


def test_coverage():
    assert list_metrics.coverage(LISTS, 4) == 3 / 4
    assert list_metrics.coverage(np.array([[2, 0]]), 4) == 1 / 4  # no item is no item


def test_gini():
    # Ascending 0, 1, 2, 3: (-3*0 - 1*1 + 1*2 + 3*3) / (4 * 6).
    assert gini(LISTS, 4) == pytest.approx(10 / 24)
    assert gini(np.array([[1, 2], [3, 4]]), 4) == 0.0
    assert gini(np.array([[2]] * 9), 4) == pytest.approx(3 / 4)  # (n - 1) / n


def test_novelty_in_bits():
    # Shares 1/2, 1/4, 1/4: 1 bit three times, 2 bits three times.
    assert novelty(LISTS, COUNTS) == pytest.approx(1.5)
    assert novelty(np.array([[4, 0]]), COUNTS) == pytest.approx(4.0)  # as if seen once in 16


def test_popularity():
    # Means of the lists 6, 6, 6; users had chosen items of mean count 4.
    assert list_metrics.mean_popularity(LISTS, COUNTS) == 6.0
    assert list_metrics.mean_popularity(np.array([[1, 0]]), COUNTS) == 8.0
    assert popularity_lift(LISTS, COUNTS, 4.0) == pytest.approx(0.5)


def test_diversity():
    vectors = np.array([[9, 9], [2, 0], [0, 3], [-1, 0], [0, 0]], float)
    # Orthogonal, orthogonal, opposite.
    assert diversity(LISTS, vectors) == pytest.approx((1 + 1 + 2) / 3)
    # Of three, pairs (1, 2), (1, 3), (2, 3).
    assert diversity(np.array([[1, 2, 3]]), vectors) == pytest.approx((1 + 2 + 1) / 3)
    assert diversity(np.array([[1, 4], [1, 0]]), vectors) == pytest.approx(1.0)
    assert np.isnan(diversity(np.array([[1, 0]]), vectors))


def test_diversity_of_many_users_is_that_of_all_pairs(monkeypatch):
    rng = np.random.default_rng(0)
    vectors, lists = rng.standard_normal((30, 5)), rng.integers(1, 30, (11, 4))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [1 - unit[own[i]] @ unit[own[j]] for own in lists for i in range(4) for j in range(i)]
    monkeypatch.setattr(list_metrics, "_USERS_AT_A_TIME", 4)
    assert diversity(lists, vectors) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_serendipity():
    answers = np.array([2, 1, 3])
    expected = np.array([[2, 4], [3, 4], [4, 1]])
    # User 0 is right, but popularity is, too; users 1 and 2 are right alone: 2 of 3, in lists of 2.
    assert serendipity(LISTS, answers, expected) == pytest.approx(2 / 3 / 2)


def test_all_together():
    found = list_metrics.list_metrics(
        LISTS,
        answers=np.array([2, 1, 3]),
        expected=np.array([[2, 4], [3, 4], [4, 1]]),
        history_popularity=4.0,
        counts=COUNTS,
        spaces={"text": np.eye(5)},
    )
    assert found == pytest.approx(
        {
            "coverage@2": 0.75, "gini@2": 10 / 24, "novelty@2": 1.5, "serendipity@2": 1 / 3,
            "popularity@2": 6.0, "popularity_lift@2": 0.5, "diversity_text@2": 1.0,
        }
    )  # fmt: skip


def test_lists_of_one_item_have_no_diversity():
    """A number that is none would not be JSON."""
    found = list_metrics.list_metrics(
        np.array([[1], [2]]),
        answers=np.array([1, 1]),
        expected=np.array([[2], [2]]),
        history_popularity=2.0,
        counts=np.array([0, 3, 1]),
        spaces={"id": np.eye(3)},
    )
    assert "diversity_id@1" not in found
    assert found["coverage@1"] == 1.0 and found["serendipity@1"] == 0.5
    assert found["novelty@1"] == pytest.approx((-np.log2(0.75) - np.log2(0.25)) / 2)
