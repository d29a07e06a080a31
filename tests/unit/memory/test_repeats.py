"""Which items are taken again: by hand, and as if a user's next item had not been counted."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.support.counted import events_of
from tssr_jax.memory.repeats import rates_without_own, repeat_rates, repeat_table


def test_rates_by_hand():
    # Item 1: two of its three users took it again; item 2: none of two; item 3: nobody took it.
    events = events_of([0, 2, 4, 5], [1, 2, 1, 2, 1], np.zeros(5, int), again=(0, 4))
    mean = 2 / 5
    expected = [(2 + 10 * mean) / (3 + 10), 10 * mean / (2 + 10), mean]
    np.testing.assert_allclose(repeat_rates(events, 3)[1:], expected, rtol=1e-6)
    table = repeat_table(events, 3)
    assert table.classes.tolist() == [[0], [1], [2], [3]]
    np.testing.assert_allclose(table.likeness[:, 0], [0, *expected], rtol=1e-6)


def test_nobody_took_anything():
    nothing = np.zeros(0, np.int32)
    assert not repeat_rates(events_of([0, 0], nothing, nothing), 3).any()


def counted(sequences):
    """Events of users' sequences."""
    firsts = [list(dict.fromkeys(own)) for own in sequences]
    items = [item for own in firsts for item in own]
    more = [
        own.count(item) > 1 for own, first in zip(sequences, firsts, strict=True) for item in first
    ]
    offsets = np.cumsum([0, *map(len, firsts)])
    return events_of(offsets, items, np.zeros(len(items), int), again=np.flatnonzero(more))


@given(st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=7), min_size=1, max_size=5))
def test_the_label_is_taken_out_where_the_user_had_it(sequences):
    """Equal to rates of the data without the label, but for the mean rate of all items."""
    events = counted(sequences)
    for own in sequences:
        label, before = own[-1], own[:-1].count(own[-1])
        found = rates_without_own(events, np.array([label]), np.array([before]))[0]
        if not before:
            assert found == repeat_rates(events, 4)[label]
            continue
        others = [other for other in sequences if other is not own]
        users = sum(label in other for other in others) + 1
        again = sum(other.count(label) > 1 for other in others) + (before > 1)
        mean = events.again.sum() / events.items.size
        np.testing.assert_allclose(found, (again + 10 * mean) / (users + 10), rtol=1e-5)
