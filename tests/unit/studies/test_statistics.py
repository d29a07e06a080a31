"""Intervals and tests over users: against exact distributions and hand-worked values."""

import itertools

import numpy as np
import pytest

from tssr_jax.studies.statistics import estimate, holm, paired_difference, resampled_means


def test_resampled_means_have_the_exact_distribution():
    values = np.array([[0.0, 1.0, 5.0]])
    exact = [np.mean(drawn) for drawn in itertools.product(values[0], repeat=3)]
    [means] = resampled_means([values], seed=1)
    for value in np.unique(exact):
        share = np.isclose(exact, value).mean()
        # Four standard errors of a share of 10,000.
        np.testing.assert_allclose(
            np.isclose(means, value).mean(), share, atol=4 * np.sqrt(share / 10_000)
        )


def test_users_are_drawn_for_all_variants_and_seeds_for_each():
    some, others = np.array([[0.0, 1.0], [4.0, 9.0]]), np.array([[16.0, 36.0]])
    exact = [
        (np.mean([some[s][list(users)] for s in seeds]), np.mean(others[0][list(users)]))
        for users in itertools.product(range(2), repeat=2)
        for seeds in itertools.product(range(2), repeat=2)
    ]
    pairs = resampled_means([some, others], seed=1)
    for pair in set(exact):
        share = np.isclose(exact, pair).all(axis=1).mean()
        found = np.isclose(pairs.T, pair).all(axis=1).mean()
        np.testing.assert_allclose(found, share, atol=4 * np.sqrt(share / 10_000))


def test_what_differs_between_seeds_only_is_no_difference():
    rng = np.random.default_rng(0)
    users = rng.random(2_000)
    luck = np.array([[0.1], [0.0], [-0.1]])
    # By users alone the difference would be clear: each is 0.02 better, and noise is small.
    result = paired_difference(users + luck + 0.02 + 0.01 * rng.random(2_000), users + luck)
    assert result.low < 0 < result.high and result.p > 0.5
    error = np.sqrt(2 * (0.02 / 3) / 3)  # of two means of three draws
    assert (result.high - result.low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_the_interval_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).standard_normal((1, 2_000))
    mean, low, high = estimate(values)
    error = 1.96 * values.std() / np.sqrt(2_000)
    assert mean == values.mean()
    np.testing.assert_allclose([low, high], [mean - error, mean + error], atol=0.1 * error)


def test_a_clear_difference_and_none():
    rng = np.random.default_rng(0)
    base = rng.random((1, 500))
    better = paired_difference(base + rng.random((1, 500)) * 0.1, base)
    assert better.low > 0 and better.p < 0.001
    same = paired_difference(base, base)
    assert same == (0.0, 0.0, 0.0, 1.0)
    # What differs is the order of noise: pairing tells, means alone would not.
    worse = paired_difference(base - 0.01, base)
    assert worse.p < 0.001 and worse.mean == pytest.approx(-0.01)


def test_p_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(0)
    nothing = np.zeros((1, 100))
    p = [paired_difference(rng.standard_normal((1, 100)), nothing, s).p for s in range(100)]
    assert 0.0 < np.mean(np.array(p) < 0.05) < 0.12
    assert 0.4 < np.mean(p) < 0.6


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_bad_input():
    with pytest.raises(ValueError, match="nothing to draw"):
        estimate(np.empty((1, 0)))
    with pytest.raises(ValueError, match="3 users can't be paired with 2"):
        paired_difference(np.zeros((2, 3)), np.zeros((1, 2)))
