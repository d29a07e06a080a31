"""Answers from a date on, against loops over the interactions."""

import datetime

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tssr_jax.config import default_config
from tssr_jax.config.validation import validate_config
from tssr_jax.data_pipeline.eval_batches import EvalBatches
from tssr_jax.data_pipeline.splits import asked_users, global_time
from tssr_jax.data_pipeline.store import SequenceStore
from tssr_jax.errors import UserError

DAY = 1440
USERS = st.lists(st.lists(st.integers(0, 30 * DAY - 1), min_size=3, max_size=8), min_size=2)


def store_of(times):
    """Users' sequences of items 1, 2, 3, ... at these minutes."""
    times = [sorted(own) for own in times]
    lengths = [len(own) for own in times]
    items = np.arange(1, sum(lengths) + 1, dtype=np.int32)
    minutes = np.concatenate(times).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return times, SequenceStore.in_memory(*map(tf.constant, (items, minutes, offsets)))


def settings_of(cuts, targets="first"):
    evaluate = default_config().evaluate
    evaluate.cuts, evaluate.targets = cuts, targets
    return evaluate


def date(day):
    return (datetime.date(1970, 1, 1) + datetime.timedelta(days=int(day))).isoformat()


def by_hand(times, start, end, which):
    """(user, place) of the answers between two days, each with an item before it."""
    found = []
    for user, own in enumerate(times):
        some = [i for i, at in enumerate(own) if i and start * DAY <= at < end * DAY]
        some = {"first": some[:1], "last": some[-1:], "all": some}[which]
        found += [(user, place) for place in some]
    return found


@settings(max_examples=150, deadline=None)
@given(USERS, st.integers(1, 15), st.integers(1, 14), st.sampled_from(["first", "last", "all"]))
def test_any_dates(times, first, more, which):
    times, store = store_of(times)
    cuts, ends = (date(first), date(first + more)), (first, first + more, 31)
    expected = [by_hand(times, *ends[i : i + 2], which) for i in (0, 1)]
    trained = [sum(at < first * DAY for at in own) for own in times]
    if not all(expected) or max(trained) < 2:
        with pytest.raises(UserError, match="Name other dates"):
            global_time(store.lengths, store.all_times, settings_of(cuts, which))
        return
    splits = global_time(store.lengths, store.all_times, settings_of(cuts, which))
    assert splits.trained.tolist() == trained
    for name, pairs in zip(("validation", "test"), expected, strict=True):
        targets = splits.targets[name]
        assert list(zip(targets.users.tolist(), targets.ends.tolist(), strict=True)) == pairs
    assert f"training ends before {cuts[0]} ({sum(trained):,} interactions)" in splits.told


@settings(max_examples=100, deadline=None)
@given(USERS, st.floats(0.05, 0.95))
def test_a_share_is_the_day_after_it_has_passed(times, share):
    times, store = store_of(times)
    whole = np.sort(np.concatenate(times))
    place = max(1, int(np.ceil(share * whole.size)))
    expected = whole[place - 1] // DAY + 1  # the day after that of the share's last interaction
    splits = None
    try:
        splits = global_time(store.lengths, store.all_times, settings_of((share, date(40))))
    except UserError as error:
        told = str(error)
        assert date(expected) in told or "must be earlier" in told
    assert splits is None  # nobody has an answer after day 40


@settings(max_examples=150, deadline=None)
@given(USERS, st.integers(1, 29), st.sampled_from(["first", "last", "all"]), st.data())
def test_one_date(times, day, which, data):
    """Training reads all but some users up to the date; validation asks these for their last."""
    times, store = store_of(times)
    before = [sum(at < day * DAY for at in own) for own in times]
    drawn = np.array([data.draw(st.booleans()) for _ in times])
    trained = [0 if out else number for out, number in zip(drawn, before, strict=True)]
    asked = [(u, n - 1) for u, n in enumerate(before) if drawn[u] and n > 1]
    expected = by_hand(times, day, 31, which)
    arguments = store.lengths, store.all_times, settings_of((date(day),), which), None, drawn
    if not asked or not expected or max(trained) < 2:
        with pytest.raises(UserError, match="Name other dates; with few users, two of them"):
            global_time(*arguments)
        return
    splits = global_time(*arguments)
    assert splits.trained.tolist() == trained and splits.until_test.tolist() == before
    for name, pairs in (("validation", asked), ("test", expected)):
        targets = splits.targets[name]
        assert list(zip(targets.users.tolist(), targets.ends.tolist(), strict=True)) == pairs
    assert f"({len(asked):,} targets of users that training leaves out)" in splits.told


def test_a_tenth_of_the_users_is_asked_the_same_ones_in_other_data():
    ids = [f"user {i}" for i in range(5_000)]
    asked = asked_users(ids)
    assert abs(asked.sum() - 500) < 80
    np.testing.assert_array_equal(asked_users([*ids[100:], "new"])[:-1], asked[100:])


def test_batches_of_answers_of_a_period():
    """Three answers of one user: each has the items before it, and no later one, as history."""
    day = [1, 2, 12, 13, 14, 25]
    times = [[d * DAY for d in day], [1, 2, 12 * DAY], [3, 4, 26 * DAY]]
    _, store = store_of(times)
    store.splits = global_time(
        store.lengths, store.all_times, settings_of((date(10), date(20)), "all")
    )
    batches = EvalBatches(
        store,
        "validation",
        batch_size=8,
        max_length=3,
        full_history=True,
        exclude_padding_class=True,
    )
    assert batches.number == 4 and batches.answers().tolist() == [3, 4, 5, 9]
    (batch,) = batches
    assert batch["item_sequence"][:4].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [0, 7, 8]]
    assert batch["times"][1].tolist() == [1 * DAY, 2 * DAY, 12 * DAY]
    assert batch["answers"][:4].tolist() == [3, 4, 5, 9]
    assert [sorted(set(row[row > 0])) for row in batch["excluded"][:4]] == [
        [1, 2], [1, 2, 3], [1, 2, 3, 4], [7, 8]
    ]  # fmt: skip
    assert batch["row_mask"].tolist() == [True] * 4 + [False] * 4
    assert store.splits.targets["test"].users.tolist() == [0, 2]


def test_a_user_without_an_item_before_has_no_first_answer():
    times = [[12 * DAY, 13 * DAY, 22 * DAY], [1, 2, 15 * DAY, 23 * DAY]]
    _, store = store_of(times)
    splits = global_time(store.lengths, store.all_times, settings_of((date(10), date(20))))
    # The first user's second item is the first that has one before it.
    assert splits.targets["validation"].ends.tolist() == [1, 2]
    assert splits.trained.tolist() == [0, 2]


@pytest.mark.parametrize("field", [("cuts", (0.7, 0.9)), ("targets", "all")], ids=str)
def test_fields_of_a_split_that_is_not_chosen(field):
    config = default_config()
    config.evaluate.update(dict([field]))
    with pytest.raises(UserError, match=r"only --config\.evaluate\.split=global_time reads"):
        validate_config(config)
    config.evaluate.split = "global_time"
    validate_config(config)


@pytest.mark.parametrize(
    "cuts", [(), (0.7, 0.8, 0.9), (0.8, 1.5), (0.8, 2), (0.9, 0.8), ("soon", 0.9)]
)
def test_cuts_that_make_no_sense(cuts):
    config = default_config()
    config.evaluate.update(cuts=cuts, split="global_time")
    _, store = store_of([[1, 2, 3], [DAY, 2 * DAY, 30 * DAY]])
    with pytest.raises(UserError, match=r"evaluate\.cuts"):
        validate_config(config)
        global_time(store.lengths, store.all_times, config.evaluate)
