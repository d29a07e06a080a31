"""Filtering, ordering and numbering of interactions."""

import gc
import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tssr_jax.data_pipeline.interactions import collect
from tssr_jax.data_pipeline.sequences import build_sequences, counted, k_core
from tssr_jax.errors import UserError


@pytest.fixture(name="build")
def fixture_build(tmp_path):
    number = itertools.count()

    def build(  # noqa: PLR0917
        rows, min_user=1, min_item=1, seed=0, rows_per_chunk=1000, core_before="", **options
    ):
        scratch = tmp_path / str(next(number))
        scratch.mkdir()
        table = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")

        def chunks():
            for number, chunk in enumerate(table.iter_slices(rows_per_chunk)):
                yield chunk
                del chunk
                if number < 3:
                    gc.collect()  # nothing but the ids' own numbers may live on

        interactions = collect(
            chunks(), scratch, tie_seed=seed, **({"drop_repeats": False} | options)
        )
        return build_sequences(
            interactions,
            min_user_interactions=min_user,
            min_item_interactions=min_item,
            core_before=core_before,
        )

    return build


def as_lists(sequences):
    """{user: items in the owner's ids}."""
    items = np.concatenate([taken.items for taken in sequences.parts()])
    pieces = np.split(items, np.cumsum(sequences.lengths)[:-1])
    return {
        user: [sequences.item_ids[int(i) - 1] for i in piece]
        for user, piece in zip(sequences.user_ids, pieces, strict=True)
    }


def test_sequences_by_hand(build):
    rows = [
        ("b", "z", 3000),
        ("a", "y", 9999),
        ("b", "x", 1000),
        ("a", "x", 5000),
        ("a", "z", 7000),
        ("b", "y", 2000),
    ]
    sequences = build(rows)
    assert as_lists(sequences) == {"a": ["x", "z", "y"], "b": ["x", "y", "z"]}
    (taken,) = sequences.parts()
    assert taken.items.tolist() == [1, 3, 2, 1, 2, 3] and not taken.more
    assert taken.times.tolist() == [5, 7, 9, 1, 2, 3]  # seconds
    assert sequences.lengths.tolist() == [3, 3] and sequences.item_counts.tolist() == [2, 2, 2]


@pytest.mark.parametrize("rows_per_part", [1, 7, 50, 10_000])
@pytest.mark.parametrize("rows_per_chunk", [3, 1000])
def test_parts_and_chunks_change_nothing(build, rows_per_part, rows_per_chunk):
    rng = np.random.default_rng(0)
    users = [f"u{n}" for n in rng.integers(0, 30, 400)]
    items = [f"i{n}" for n in rng.zipf(1.3, 400) % 40]
    rows = list(zip(users, items, rng.integers(0, 20, 400).tolist(), strict=True))
    options = {"min_user": 4, "min_item": 4, "drop_repeats": True}
    whole = build(rows, **options)
    pieces = build(rows, rows_per_part=rows_per_part, rows_per_chunk=rows_per_chunk, **options)
    assert as_lists(pieces) == as_lists(whole)
    assert pieces.report == whole.report
    assert whole.report["interactions_dropped_by_k_core"] > 0
    assert len(list(pieces.parts())) >= min(30, 400 // rows_per_part // 2)


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
    st.integers(1, 60),
)
def test_k_core_equals_the_naive_one(pairs, min_user, min_item, rows_per_part):
    users, items = np.array(pairs).T

    def parts():
        for start in range(0, len(pairs), rows_per_part):
            rows = slice(start, start + rows_per_part)
            yield users[rows], items[rows]

    core = k_core(lambda *left: counted(parts(), *left), 8, 8, min_user, min_item)
    kept = core.users[users] & core.items[items]
    assert set(np.flatnonzero(kept)) == naive_k_core(pairs, min_user, min_item)
    assert core.user_counts[core.users].sum() == core.item_counts[core.items].sum() == kept.sum()


DAY = 86_400_000  # milliseconds


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(
        st.tuples(*(st.sampled_from("abcdef"), st.sampled_from("uvwxyz")), st.integers(0, 9 * DAY)),
        min_size=1,
        max_size=80,
    ),
    least=st.integers(1, 4),
    day=st.integers(1, 9),
)
def test_a_core_by_what_is_before_a_date(build, rows, least, day):
    """Earlier interactions decide who and what is in it; it has later ones, too."""
    early = [row for row in rows if row[2] < day * DAY]
    kept = {early[i][:2] for i in naive_k_core([row[:2] for row in early], max(least, 3), least)}
    options = {"min_user": least, "min_item": least, "core_before": f"1970-01-{1 + day:02}"}
    if not kept:
        with pytest.raises(UserError, match=f"Only those before 1970-01-{1 + day:02} count"):
            build(rows, **options)
        return
    users, items = ({pair[i] for pair in kept} for i in (0, 1))
    expected = {user: [] for user in users}
    for user, item, _ in rows:
        if user in users and item in items:
            expected[user].append(item)
    found = as_lists(build(rows, **options))
    assert {user: sorted(own) for user, own in found.items()} == {
        user: sorted(own) for user, own in expected.items()
    }


def test_a_date_that_is_none_is_told(build):
    with pytest.raises(UserError, match=r"core_before is '9\.5\.2024', which is no date"):
        build(chain(), core_before="9.5.2024")


def chain(length=30):
    return [(f"u{u}", f"i{i}", 100) for u in range(8) for i in range(length)]


def test_ties_depend_on_the_seed_alone_not_on_the_file_order(build):
    rows = chain()
    first = as_lists(build(rows))
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    assert as_lists(build(shuffled)) == first
    assert as_lists(build(rows, seed=1)) != first


def test_ties_follow_neither_item_ids_nor_a_common_order(build):
    orders = list(as_lists(build(chain())).values())
    assert all(order != sorted(order) for order in orders)
    assert orders[0] != orders[1]


def test_tie_order_is_fixed_for_ever(build):
    """The same on every machine and in every version: results in papers depend on it."""
    assert as_lists(build([("u", item, 0) for item in "abcdef"]))["u"] == list("bfdcea")


def test_repeats_at_one_time_are_kept_once_if_asked_for(build):
    rows = [("a", "x", 1), ("a", "y", 1), ("a", "x", 1), ("a", "x", 2), ("a", "y", 3)]
    assert as_lists(build(rows))["a"].count("x") == 3
    sequences = build(rows, drop_repeats=True)
    assert sorted(as_lists(sequences)["a"][:2]) == ["x", "y"]
    assert as_lists(sequences)["a"][2:] == ["x", "y"]
    report = sequences.report
    assert report["interactions_read"] == 5 and report["interactions_dropped_as_repeats"] == 1
    assert report["interactions_kept"] == 4


def test_repeats_do_not_count_for_the_k_core(build):
    rows = [("a", "x", 1)] * 5 + [("b", i, 1) for i in "xyz"]
    assert as_lists(build(rows, min_user=3, drop_repeats=True)).keys() == {"b"}


def test_counts_add_up(build):
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
    # a: all times differ; b: all alike.
    assert report["share_of_tied_neighbours"] == pytest.approx(2 / 7)
    assert report["density"] == pytest.approx(9 / (2 * 3))
    assert report["max_length"] == 6 and report["mean_length"] == 4.5


def test_users_with_fewer_than_three_items_are_dropped_and_counted(build):
    rows = [("a", "x", 1), ("a", "y", 2), ("b", "x", 1), ("b", "y", 2), ("b", "z", 3)]
    sequences = build(rows)
    assert as_lists(sequences) == {"b": ["x", "y", "z"]}
    assert sequences.report["users_dropped_with_fewer_than_3_items"] == 1


def test_an_empty_result_says_which_filter_and_what_to_do(build):
    with pytest.raises(
        UserError,
        match=r"0 of 8 users have at least 5, 3 of 3 items have at least 1.*min_user_interactions",
    ):
        build(chain(3), min_user=5)
    with pytest.raises(UserError, match=r"8 of 8 users have at least 3, 0 of 3 items .* least 9"):
        build(chain(3), min_item=9)


def test_the_share_of_answers_that_users_had_before(build):
    # Of a's answers y and x the second was there before; of b's none, though z is repeated.
    rows = [("a", item, 1000 * t) for t, item in enumerate("xzyx")]
    rows += [("b", item, 1000 * t) for t, item in enumerate("zzxy")]
    report = build(rows).report
    assert report["share_of_answers_that_the_user_had_before"] == 1 / 4
    assert report["repeated_user_item_pairs"] == 2
