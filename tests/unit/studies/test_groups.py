"""Groups of users by hand."""

import numpy as np
import pytest

from tssr_jax.studies.groups import group_metrics


def test_groups_by_hand():
    users = {
        "history": np.array([2, 4, 5, 100]),
        "test_answer": np.array([1, 2, 3, 4]),
        # Items 2, 3 and 1 have 1, 3 and 4 of 8 interactions: parts 1, 2 and 4; item 4 none.
        "counts": np.array([0, 4, 1, 3, 0]),
        "test_rank": np.array([0, 10, 2, 0]),
        "same_day": np.array([True, True, False, False]),
    }
    worse = {**users, "test_rank": np.array([20, 20, 2, 0])}
    found = group_metrics([users, worse], "test", [users["counts"]] * 2)
    assert [tuple(g) for g in found["NDCG@10 by length of history"]] == [
        ("1-4", 2, pytest.approx(0.25), pytest.approx(0.25)),
        ("5-8", 1, pytest.approx(0.5), 1.0),
        ("65+", 1, 1.0, 1.0),
    ]
    assert [tuple(g) for g in found["NDCG@10 by popularity"]] == [
        ("cold", 1, 1.0, 1.0),
        ("part 1 of 4 (rare)", 1, 0.0, 0.0),
        ("part 3 of 4", 1, pytest.approx(0.5), 1.0),
        ("part 4 of 4 (popular)", 1, pytest.approx(0.5), pytest.approx(0.5)),
    ]
    assert [tuple(g) for g in found["NDCG@10 by day of the answer"]] == [
        ("the day of the item before", 2, pytest.approx(0.25), pytest.approx(0.25)),
        ("later", 2, pytest.approx(0.75), 1.0),
    ]


def test_each_seed_has_its_own_cold_items():
    """Item 1 is held out of the first seed's training, item 2 of the second's."""
    first = {
        "history": np.array([2, 4, 5]),
        "test_answer": np.array([1, 2, 2]),
        "test_rank": np.array([20, 0, 0]),
    }
    second = {**first, "test_rank": np.array([0, 20, 20])}
    counts = [np.array([0, 0, 5]), np.array([0, 5, 0])]
    found = group_metrics([first, second], "test", counts)["NDCG@10 by popularity"]
    assert [tuple(g) for g in found] == [
        ("cold", 2, 0.0, 0.0),  # one user, and two
        ("part 4 of 4 (popular)", 2, 1.0, 1.0),
    ]
