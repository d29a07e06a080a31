"""Popularity around a time: by hand, and whatever the times are like."""

import numpy as np
import pytest

from tssr_jax.memory.popularity import (
    PERIODS,
    popularity_around,
    popularity_at,
    popularity_before,
)


def test_by_hand():
    """Two interactions in each period; item 1 is taken in the first half only, item 2 always."""
    minutes = np.repeat(np.arange(PERIODS), 2) * 7 + 100
    items = np.where((np.arange(2 * PERIODS) % 2 == 0) & (minutes < 100 + 7 * 16), 1, 2)
    order = np.random.default_rng(0).permutation(items.size)
    found = popularity_around(items[order], minutes[order], 3)
    expected = np.zeros((PERIODS, 4))
    for period in range(PERIODS):
        for other in range(PERIODS):
            weight = np.exp(-abs(period - other) / 3)
            expected[period, 1] += weight * (other < 16)
            expected[period, 2] += weight * (1 if other < 16 else 2)
    expected /= expected[:, 1:].mean()
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5)
    # A period reaches up to its last interaction; what is before or after all is of the nearest.
    times = np.array([0, 100, 101, 107, 108, 100 + 7 * 31, 2**31 - 1])
    periods = [0, 0, 1, 1, 2, 31, 31]
    np.testing.assert_allclose(popularity_at(found, times), expected[periods], rtol=1e-5)


@pytest.mark.parametrize("number", [0, 1, 5, 1000])
@pytest.mark.parametrize("count", [popularity_around, popularity_before])
def test_all_at_one_time(number, count):
    found = count(*np.full((2, number), [[1], [9]], np.int32), 2)
    (scores,) = np.asarray(popularity_at(found, np.array([10])))
    assert np.isfinite(scores).all() and scores[2] == scores[0] == 0
    assert (scores[1] > 0) == (number > 0)


def test_periods_are_short_where_much_happens():
    rng = np.random.default_rng(0)
    minutes = np.concatenate([rng.integers(0, 1_000, 310), rng.integers(1_000_000, 2_000_000, 10)])
    found = popularity_around(rng.integers(1, 4, 320), minutes, 3)
    assert (np.asarray(found.ends) < 1_000).sum() == PERIODS - 1
    assert found.scores.dtype == np.float32 and found.ends.dtype == np.int32


def test_before_by_hand():
    """Item 1 is taken in the first half, item 2 always: what comes later changes nothing."""
    minutes = np.repeat(np.arange(PERIODS), 2) * 7 + 100
    items = np.where((np.arange(2 * PERIODS) % 2 == 0) & (minutes < 100 + 7 * 16), 1, 2)
    order = np.random.default_rng(0).permutation(items.size)
    found = popularity_before(items[order], minutes[order], 3)
    expected = np.zeros((PERIODS + 1, 4))
    for period in range(PERIODS + 1):
        for earlier in range(period):
            weight = np.exp(-(period - 1 - earlier) / 3)
            expected[period, 1] += weight * (earlier < 16)
            expected[period, 2] += weight * (1 if earlier < 16 else 2)
    expected[1:] /= expected[1:, 1:].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5)
    # Of an interaction only those of earlier periods are known; after all, everything is.
    times = np.array([0, 100, 101, 107, 108, 100 + 7 * 31, 101 + 7 * 31, 2**31 - 1])
    periods = [0, 0, 1, 1, 2, 31, 32, 32]
    np.testing.assert_allclose(popularity_at(found, times), expected[periods], rtol=1e-5)
    assert found.asked_from == 101 + 7 * 31
