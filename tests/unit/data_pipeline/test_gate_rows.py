"""Which items the memory gate learns to predict, against loops over the interactions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tssr_jax.config import default_config
from tssr_jax.data_pipeline import gate_rows as module
from tssr_jax.data_pipeline.gate_rows import gate_rows, least_length, trained_lengths
from tssr_jax.data_pipeline.splits import MINUTES_PER_DAY, Splits
from tssr_jax.data_pipeline.store import SequenceStore
from tssr_jax.data_pipeline.tensorflow_cpu import tf


def stored(days, trained, bought=None):
    """Sequences of items 1, 2, ... on these days, of which training reads the first `trained`."""
    lengths = [len(own) for own in days]
    minutes = [MINUTES_PER_DAY * day + place for own in days for place, day in enumerate(own)]
    columns = np.arange(1, 1 + sum(lengths)), minutes, np.concatenate([[0], np.cumsum(lengths)])
    more, predicted = {}, None
    if bought is not None:
        events = [1 + kind for own in bought for kind in own]
        more, predicted = {"event": tf.constant(events, tf.int32)}, np.array([False, False, True])
    dtypes = tf.int32, tf.int32, tf.int64
    store = SequenceStore.in_memory(*map(tf.constant, columns, dtypes), more, predicted)
    store.splits = Splits(np.array(trained), np.array(lengths), {})
    return store


def config_of(targets="first", split="global_time"):
    config = default_config()
    config.model.update(memory=("co_occurrence",), max_length=8)
    config.evaluate.update(split=split, targets=targets)
    config.seed = 3
    return config


USERS = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=3, max_size=9).map(sorted),
    min_size=1,
    max_size=30,
)


@given(USERS, st.booleans(), st.data())
@settings(max_examples=60)
def test_first_item_of_the_newest_day(users, with_events, data):
    trained = [data.draw(st.integers(0, len(own))) for own in users]
    days, bought = ([[x[i] for x in own] for own in users] for i in (0, 1))
    store = stored(days, trained, bought if with_events else None)
    expected = []
    for own, kinds, number in zip(days, bought, trained, strict=True):
        asked = [i for i in range(number) if kinds[i] or not with_events]
        later = [i for i in asked if own[i] > own[0]]
        newest = max((own[i] for i in later), default=None)
        expected.append(next((i for i in later if own[i] == newest), -1))
    assert store.first_of_newest_day.tolist() == expected


# Three users come back after items 2, 3 and 4 of theirs; the last one has a single day.
DAYS = [[1, 1, 2, 2, 2, 9], [1, 1, 1, 2, 9], [0, 1, 1, 1, 5, 5, 9], [3, 3, 3, 3, 9]]
TRAINED = [5, 4, 6, 4]


@pytest.mark.parametrize(
    ("config", "lent"),
    [
        (config_of(), {0: 2, 1: 3, 2: 4}),
        (config_of("last"), {0: 4, 1: 3, 2: 5, 3: 3}),
        (config_of("all"), {0: 4, 1: 3, 2: 5, 3: 3}),
        (config_of(split="leave_one_out"), {0: 4, 1: 3, 2: 5, 3: 3}),
    ],
    ids=["first", "last", "all", "leave-one-out"],
)
def test_what_is_lent_is_of_the_kind_that_is_asked_for(config, lent, monkeypatch):
    monkeypatch.setattr(module, "_ONE_IN", 1)
    monkeypatch.setattr(module, "_LEAST_BACK", 3)
    store = stored(DAYS, TRAINED)
    rows = gate_rows(store, config, 23)
    firsts = np.cumsum([1, *map(len, DAYS)])
    assert (
        dict(zip(rows.users.tolist(), (rows.labels - firsts[rows.users]).tolist(), strict=True))
        == lent
    )
    for user, items in zip(rows.users, rows.items, strict=True):
        assert items[items > 0].tolist() == list(range(firsts[user], firsts[user] + lent[user]))
    # Windows have nothing of what is lent, nor of what comes later.
    expected = [lent.get(user, number) for user, number in enumerate(TRAINED)]
    assert trained_lengths(store, config).tolist() == expected


def test_windows_miss_few_items(monkeypatch):
    """Of 19 training items they miss at most three: user 1's day has one item, 2's has two."""
    monkeypatch.setattr(module, "_ONE_IN", 7)
    monkeypatch.setattr(module, "_LEAST_BACK", 3)
    assert sorted(gate_rows(stored(DAYS, TRAINED), config_of(), 23).users) == [1, 2]


def test_few_users_that_come_back_do_not_teach_the_gate():
    store = stored(DAYS * 21, TRAINED * 21)
    rows = gate_rows(store, config_of(), 21 * 23)
    assert (store.first_of_newest_day >= 2).sum() == 63
    assert all(place + 1 == TRAINED[user % 4] for user, place in places(rows))
    store = stored(DAYS * 22, TRAINED * 22)
    rows = gate_rows(store, config_of(), 22 * 23)
    assert {user % 4: place for user, place in places(rows)} == {1: 3}


def places(rows):
    firsts = np.cumsum([1, *map(len, DAYS * 22)])
    return zip(rows.users.tolist(), (rows.labels - firsts[rows.users]).tolist(), strict=True)


def test_the_gate_reads_no_shorter_histories_than_it_learns_from(monkeypatch):
    """Of the lent histories, of 2, 3 and 4 items, 95% have at least 2; windows cut longer ones."""
    monkeypatch.setattr(module, "_ONE_IN", 1)
    monkeypatch.setattr(module, "_LEAST_BACK", 3)
    store, config = stored(DAYS, TRAINED), config_of()
    assert least_length(store, config) == 2
    longer = stored([[1] * 7 + [2]] * 3, [8] * 3)
    assert least_length(longer, config) == 7
    config.model.max_length = 5
    assert least_length(longer, config) == 5
    assert least_length(stored([[1, 1, 1]], [0]), config) == 1


@pytest.mark.parametrize("keep_seen", [False, True])
def test_items_that_can_not_be_labels_are_not_lent(keep_seen):
    """Every other user's newest training item is one that the user had before."""
    items = [[1, 2, 3, 4, 5 if user % 2 else 1, 9, 9] for user in range(200)]
    flat = np.concatenate(items)
    columns = flat, MINUTES_PER_DAY * np.arange(flat.size), np.arange(0, flat.size + 1, 7)
    dtypes = tf.int32, tf.int32, tf.int64
    store = SequenceStore.in_memory(*map(tf.constant, columns, dtypes))
    store.splits = Splits(np.full(200, 5), np.full(200, 6), {})
    config = config_of(split="leave_one_out")
    config.evaluate.keep_seen = keep_seen
    lent = np.flatnonzero(trained_lengths(store, config) < 5)
    rows = gate_rows(store, config, 9)
    assert lent.size == -(-1000 // 64)  # one in 64 of all interactions
    assert sorted(rows.users) == lent.tolist()
    assert keep_seen or (lent % 2).all()
