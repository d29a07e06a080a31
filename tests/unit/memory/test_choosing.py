"""The time over which pairs fade is chosen by what it predicts."""

import numpy as np
import pytest

from tests.support.counted import events_of
from tssr_jax.memory.choosing import best_fading
from tssr_jax.memory.co_occurrence import Counting

COUNTING = Counting(fading=0.0, power=0.5, shrinkage=1.0)


def users_of(rng):
    """Each takes an item of most of ten pairs, at times far apart, or both at one time.

    So items of different pairs have more users in common than those of a pair.
    """
    offsets, items, minutes = [0], [], []
    for _ in range(600):
        for when, pair in enumerate(rng.choice(10, 8, replace=False)):
            both = rng.permutation([2 * pair + 1, 2 * pair + 2])[: rng.integers(1, 3)]
            items += both.tolist()
            minutes += [1_000_000 * when + place for place in range(both.size)]
        offsets.append(len(items))
    return events_of(np.array(offsets), np.array(items), np.array(minutes))


def test_baskets_fade_fast():
    events = users_of(np.random.default_rng(0))
    assert best_fading(events, 20, COUNTING, 0.8, (0.0, 0.5)) == 0.5
    assert best_fading(events, 20, COUNTING, 0.8, (0.5, 0.0)) == 0.5


def test_what_can_not_be_told_apart():
    """All pairs are as far apart."""
    events = users_of(np.random.default_rng(0))
    events = events._replace(minutes=np.zeros_like(events.minutes))
    assert best_fading(events, 20, COUNTING, 0.8, (0.1, 0.5, 0.0)) == 0.1


@pytest.mark.parametrize("sizes", [[], [1, 1], [0]], ids=str)
def test_nobody_took_two_items(sizes):
    offsets = np.cumsum([0, *sizes])
    events = events_of(offsets, np.ones(offsets[-1], int), np.ones(offsets[-1], int))
    assert best_fading(events, 3, COUNTING, 0.8, (0.1, 0.2)) == 0.1


def test_a_sample_of_many_users():
    events = users_of(np.random.default_rng(0))
    limited = best_fading(events, 20, COUNTING, 0.8, (0.0, 0.5), most_pairs=20_000)
    assert limited == 0.5
    # A program that took everything does not count, even if it is drawn first.
    everything = np.arange(1, 201), np.arange(200) * 10**6
    for user in np.random.default_rng(0).permutation(601)[:3].tolist():
        place = events.offsets[user]
        offsets = np.insert(events.offsets, user, place)
        offsets[user + 1 :] += 200
        columns = (
            np.insert(values, place, more)
            for values, more in zip(events[1:3], everything, strict=True)
        )
        found = best_fading(events_of(offsets, *columns), 200, COUNTING, 0.8, (0.0, 0.5), 30_000)
        assert found == 0.5
    # One user alone, whose own pairs are left out, tells nothing: the first value is taken.
    for fadings in ((0.0, 0.5), (0.5, 0.0)):
        assert best_fading(events, 20, COUNTING, 0.8, fadings, most_pairs=0) == fadings[0]
