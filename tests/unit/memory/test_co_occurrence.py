"""Neighbours by co-occurrence: by hand, and against a loop over all pairs."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.clusters import LastFirst
from tests.support.counted import events_of
from tssr_jax.data_pipeline.store import SequenceStore
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.memory.co_occurrence import (
    Counting,
    co_occurrence_neighbours,
    training_events,
)


def cosine(shrinkage):
    return Counting(fading=0.0, power=0.5, shrinkage=shrinkage)


def store_of(*sequences, times=None):
    """Each sequence is what training sees; two more items are held out."""
    whole = [[*sequence, 4, 4] for sequence in sequences]
    times = [[*own, 0, 0] for own in times] if times else whole
    ends = np.cumsum([0, *map(len, whole)])
    items, minutes = (np.concatenate(values).astype(np.int32) for values in (whole, times))
    return SequenceStore.in_memory(*map(tf.constant, (items, minutes, ends)))


def dense(neighbours, num_items):
    """The likeness of all pairs, [num_items + 1, num_items + 1]."""
    matrix = np.zeros((num_items + 1, num_items + 1))
    np.add.at(matrix, (np.arange(num_items + 1)[:, None], neighbours.classes), neighbours.likeness)
    return matrix


def test_users_events_are_each_item_once_at_its_first_time():
    store = store_of([3, 1, 3, 2], [2], times=[[5, 6, 7, 8], [9]])
    events = training_events(store)
    assert events.offsets.tolist() == [0, 3, 4]
    assert events.items.tolist() == [3, 1, 2, 2]
    assert events.minutes.tolist() == [5, 6, 8, 9]
    assert events.again.tolist() == [True, False, False, False]
    without = training_events(store, np.array([False, True, False, False, False]))
    assert without.items.tolist() == [3, 2, 2] and without.offsets.tolist() == [0, 2, 3]
    assert without.again.tolist() == [True, False, False]


def test_the_cosine_by_hand():
    # Users have items 1 and 2, 1 and 2 (twice), 2 and 3: n = 2, 3, 1, and item 4 held out only.
    events = training_events(store_of([1, 2], [1, 2, 2], [2, 3]))
    found = co_occurrence_neighbours(events, 4, 2, cosine(1.0))
    one_two, two_three = 2 / (np.sqrt(6) + 1), 1 / (np.sqrt(3) + 1)
    two_one, three_two = 1 / (np.sqrt(6) + 1), 0.5 / (np.sqrt(3) + 1)  # taken in the other order
    assert found.classes.tolist() == [[0, 0], [2, 0], [3, 1], [2, 0], [0, 0]]
    np.testing.assert_allclose(
        found.likeness,
        [[0, 0], [one_two, 0], [two_three, two_one], [three_two, 0], [0, 0]],
        rtol=1e-6,
    )


def test_times_and_powers_by_hand():
    # Two users take 1 and 2: 3 minutes apart, and 99 minutes. One of them takes 3 with 2.
    times = [[0, 3], [0, 99, 99]]
    events = training_events(store_of([1, 2], [1, 2, 3], times=times))
    found = co_occurrence_neighbours(events, 3, 2, Counting(0.5, 0.25, 3.0))
    expected = np.zeros((4, 4))
    expected[1, 2] = (0.5 + 0.1) / (2 + 3)
    expected[2, 1] = expected[1, 2] / 2  # 1 is recommended, and both took it before 2
    expected[2, 3] = 1 / (2**0.25 + 3)  # n_2 = 2, n_3 = 1, and 3 is recommended
    expected[3, 2] = 1 / (2**0.75 + 3)  # at one time: in no order
    expected[1, 3] = 0.1 / (2**0.25 + 3)
    expected[3, 1] = 0.1 / (2**0.75 + 3) / 2
    np.testing.assert_allclose(dense(found, 3), expected, rtol=1e-6)
    assert found.classes[2].tolist() == [3, 1]  # the most similar one first


@given(st.data())
def test_it_is_a_sum_over_users_and_pairs(data):
    users = data.draw(st.lists(st.lists(st.integers(1, 6), unique=True, max_size=6), min_size=1))
    sizes = [len(own) for own in users]
    items = np.array([item for own in users for item in own], np.int32)
    number = sum(sizes)
    minutes = np.array(data.draw(st.lists(st.integers(-99, 99), min_size=number, max_size=number)))
    events = events_of(np.cumsum([0, *sizes]), items, minutes.astype(np.int32))
    counting = Counting(fading=0.3, power=0.7, shrinkage=2.0)
    counts, expected = np.bincount(items, minlength=7), np.zeros((7, 7))
    for first, end in itertools.pairwise(events.offsets):
        for a, b in itertools.permutations(range(first, end), 2):
            gap = int(minutes[b]) - int(minutes[a])
            expected[items[a], items[b]] += (0.5 if gap < 0 else 1.0) / (1 + abs(gap)) ** 0.3
    expected /= counts[:, None] ** 0.7 * counts[None] ** 0.3 + 2.0
    np.testing.assert_allclose(
        dense(co_occurrence_neighbours(events, 6, 6, counting), 6), expected, rtol=1e-5
    )
    # In a large catalogue an item's pairs are sorted: they are the same.
    large = dense(co_occurrence_neighbours(events, 400, 6, counting), 400)
    np.testing.assert_allclose(large[:7, :7], expected, rtol=1e-5)
    assert not large[7:].any() and not large[:, 7:].any()
    best = co_occurrence_neighbours(events, 6, 2, counting)
    kept = np.sort(expected, axis=1)[:, :-3:-1]
    np.testing.assert_allclose(best.likeness, kept, rtol=1e-5)


def test_nobody_has_anything():
    events = events_of(np.zeros(3, np.int64), *(np.zeros(0, np.int32),) * 2)
    found = co_occurrence_neighbours(events, 3, 2, cosine(0.0))
    assert not found.likeness.any()


@pytest.mark.parametrize("number", [1, 5, 100])
def test_there_are_no_more_neighbours_than_items(number):
    events = training_events(store_of([1, 2, 3]))
    found = co_occurrence_neighbours(events, 5, number, cosine(0.0))
    assert found.classes.shape == found.likeness.shape == (6, min(5, number))


def test_any_engine_finds_the_same():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 60)
    items = np.concatenate([rng.choice(40, n, replace=False) + 1 for n in sizes]).astype(np.int32)
    minutes = rng.integers(0, 5000, items.size).astype(np.int32)
    events = events_of(np.concatenate([[0], np.cumsum(sizes)]), items, minutes)
    counting = Counting(0.5, 0.25, 3.0)
    here = co_occurrence_neighbours(events, 50, 6, counting)
    there = co_occurrence_neighbours(events, 50, 6, counting, LastFirst())
    np.testing.assert_array_equal(here.classes, there.classes)
    np.testing.assert_array_equal(here.likeness, there.likeness)
    assert (here.likeness > 0).sum() > 100
