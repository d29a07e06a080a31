"""Filtering, ordering and numbering of interactions."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.sequences import build_sequences, k_core
from tssr_jax.errors import UserError


def table(rows):
    return pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")


def build(rows, min_user=1, min_item=1, seed=0):
    return build_sequences(
        table(rows), min_user_interactions=min_user, min_item_interactions=min_item, tie_seed=seed
    )


def as_lists(sequences):
    """{user: items in the owner's ids}."""
    pieces = np.split(sequences.items, sequences.offsets[1:-1])
    return {
        str(user): [str(sequences.item_ids[i - 1]) for i in piece]
        for user, piece in zip(sequences.user_ids, pieces, strict=True)
    }


def test_sequences_by_hand():
    rows = [
        ("b", "z", 3),
        ("a", "y", 9),
        ("b", "x", 1),
        ("a", "x", 5),
        ("a", "z", 7),
        ("b", "y", 2),
    ]
    sequences = build(rows)
    assert as_lists(sequences) == {"a": ["x", "z", "y"], "b": ["x", "y", "z"]}
    assert sequences.items.tolist() == [1, 3, 2, 1, 2, 3]
    assert sequences.offsets.tolist() == [0, 3, 6]


def naive_k_core(pairs, min_user, min_item):
    kept = list(enumerate(pairs))
    while True:
        users = [user for _, (user, _) in kept]
        items = [item for _, (_, item) in kept]
        still = [
            (index, (user, item))
            for index, (user, item) in kept
            if users.count(user) >= min_user and items.count(item) >= min_item
        ]
        if len(still) == len(kept):
            return {index for index, _ in kept}
        kept = still


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_k_core_equals_the_naive_one(pairs, min_user, min_item):
    users, items = np.array(pairs).T
    keep, _ = k_core(users, items, min_user, min_item)
    assert set(np.flatnonzero(keep)) == naive_k_core(pairs, min_user, min_item)


def chain(length=30):
    return [(f"u{u}", f"i{i}", 100) for u in range(8) for i in range(length)]


def test_ties_depend_on_the_seed_alone_not_on_the_file_order():
    rows = chain()
    first = as_lists(build(rows))
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    assert as_lists(build(shuffled)) == first
    assert as_lists(build(rows, seed=1)) != first


def test_ties_follow_neither_item_ids_nor_a_common_order():
    orders = list(as_lists(build(chain())).values())
    assert all(order != sorted(order) for order in orders)
    assert orders[0] != orders[1]


def test_tie_order_is_fixed_for_ever():
    """The same on every machine and in every version: results in papers depend on it."""
    assert as_lists(build([("u", item, 0) for item in "abcdef"]))["u"] == list("bfdcea")


def test_counts_add_up():
    rows = [("a", i, t) for t, i in enumerate("xyzxyz")] + [("b", i, 0) for i in "xyz"]
    rows += [("c", "x", 1), ("d", "q", 1), ("d", "x", 2), ("d", "y", 3)]
    report = build(rows, min_user=3, min_item=3).report
    assert report["interactions_read"] == len(rows) == 13
    assert report["interactions_kept"] + report["interactions_dropped_by_k_core"] == 13
    assert report["users"] == 2 and report["users_read"] == 4
    # c has one interaction; d falls to two when q goes.
    assert report["users_dropped_with_fewer_than_3_items"] == 1
    assert report["users_dropped_by_k_core"] == 1
    assert report["items"] == 3 and report["items_dropped_by_k_core"] == 1
    assert report["repeated_user_item_pairs"] == 3


def test_users_with_fewer_than_three_items_are_dropped_and_counted():
    rows = [("a", "x", 1), ("a", "y", 2), ("b", "x", 1), ("b", "y", 2), ("b", "z", 3)]
    sequences = build(rows)
    assert as_lists(sequences) == {"b": ["x", "y", "z"]}
    assert sequences.report["users_dropped_with_fewer_than_3_items"] == 1


def test_an_empty_result_says_which_filter_and_what_to_do():
    with pytest.raises(UserError, match=r"at least 5 interactions.*min_user_interactions"):
        build(chain(3), min_user=5)
