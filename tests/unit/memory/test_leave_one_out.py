"""A user's own interactions taken out: by hand, and as if they had never been counted."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.support.counted import events_of
from tssr_jax.memory.co_occurrence import Counting, co_occurrence_neighbours
from tssr_jax.memory.leave_one_out import Histories, scores_without_own

NUM_ITEMS = 6


def dense(events, counting):
    table = co_occurrence_neighbours(events, NUM_ITEMS, NUM_ITEMS, counting)
    matrix = np.zeros((NUM_ITEMS + 1, NUM_ITEMS + 1))
    np.add.at(matrix, (np.arange(NUM_ITEMS + 1)[:, None], table.classes), table.likeness)
    return table, matrix


def test_by_hand():
    # Users 0 and 1 have 1 and 2, 8 and 24 minutes apart; user 0 also has 3, at the time of 2.
    items, minutes = np.array([1, 2, 3, 1, 2]), np.array([0, 8, 8, 5, 29])
    events = events_of(np.array([0, 3, 5]), items, minutes)
    counting = Counting(fading=0.5, power=0.5, shrinkage=1.0)
    table, _ = dense(events, counting)
    histories = Histories(
        users=np.array([0, 0, 1]),
        items=np.array([[0, 1], [1, 3], [0, 1]]),
        weights=np.array([[0, 1.0], [0.5, 1.0], [0, 1.0]]),
        labels=np.array([2, 2, 2]),
        before=np.zeros(3, int),
    )
    found = scores_without_own(table, events, histories, counting)
    # Without user 0: n_1 = n_2 = 1, user 1 has the pair 24 minutes apart; nobody else has 3.
    first = (1 / 5) / (1 + 1)
    # Without user 1: user 0 has it 8 minutes apart.
    third = (1 / 3) / (1 + 1)
    np.testing.assert_allclose(found, [first, 0.5 * first, third], rtol=1e-5)
    # Of what users had before, their own interactions with it stay: they are of another time.
    table_says = 1 / 3 / (2 + 1) + 1 / 5 / (2 + 1)
    found = scores_without_own(
        table, events, histories._replace(before=np.array([1, 0, 2])), counting
    )
    np.testing.assert_allclose(found, [table_says, 0.5 * first, table_says], rtol=1e-5)


@given(st.data())
def test_it_is_as_if_the_user_had_never_been(data):
    taken = st.lists(st.integers(1, NUM_ITEMS), unique=True, min_size=2, max_size=NUM_ITEMS)
    users = data.draw(st.lists(taken, min_size=1, max_size=6))
    items = np.array([item for own in users for item in own])
    times = st.lists(st.integers(0, 300), min_size=items.size, max_size=items.size)
    offsets = np.cumsum([0, *map(len, users)])
    events = events_of(offsets, items, np.array(data.draw(times)))
    counting = Counting(fading=0.2, power=0.7, shrinkage=3.0)
    table, _ = dense(events, counting)
    for user, own in enumerate(users):
        others = np.delete(np.arange(items.size), np.arange(offsets[user], offsets[user + 1]))
        sizes = np.diff(offsets) * (np.arange(len(users)) != user)
        without = events_of(np.cumsum([0, *sizes]), items[others], events.minutes[others])
        _, expected = dense(without, counting)
        *history, label = own
        weights = np.linspace(0.5, 1.0, len(history))
        found = scores_without_own(
            table,
            events,
            Histories(*map(np.array, ([user], [history], [weights], [label], [0]))),
            counting,
        )
        np.testing.assert_allclose(found[0], weights @ expected[history, label], rtol=1e-4)
