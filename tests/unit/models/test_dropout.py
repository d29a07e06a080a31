"""Dropout's masks: the right share, independent of each other, and of how rows are cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tssr_jax.models.layers import Dropout, random_bits

ROWS, SHAPE = 64, (50, 64)
SIZE = ROWS * 50 * 64


def uniform(key=0, rows=None):
    rows = jnp.arange(ROWS) if rows is None else rows
    bits = random_bits(jax.random.key(key), rows, SHAPE)
    return np.asarray(bits, np.float64) / 2**32


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_share_and_scale(rate):
    x = jnp.full((ROWS, *SHAPE), 3.0)
    y = Dropout(rate).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(1)})
    values, counts = np.unique(np.asarray(y), return_counts=True)
    np.testing.assert_allclose(values, [0.0, 3.0 / (1 - rate)], rtol=1e-6)
    # Five standard deviations of a binomial share.
    assert abs(counts[0] / SIZE - rate) < 5 * np.sqrt(rate * (1 - rate) / SIZE)
    same = Dropout(rate).apply({}, x, deterministic=True)
    np.testing.assert_array_equal(same, x)


def test_uniform_and_uncorrelated():
    """Within rows, along rows, between keys, and of every bit."""
    values = uniform()
    counts, _ = np.histogram(values, bins=256, range=(0, 1))
    chi_square = ((counts - SIZE / 256) ** 2 / (SIZE / 256)).sum()
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)
    centred = values - 0.5
    pairs = {
        "next value": (centred[..., 1:], centred[..., :-1]),
        "next column": (centred[:, 1:], centred[:, :-1]),
        "next row": (centred[1:], centred[:-1]),
        "next key": (centred, uniform(key=1) - 0.5),
        "a row and a value further": (centred[1:, :, 1:], centred[:-1, :, :-1]),
    }
    for name, (x, y) in pairs.items():
        correlation = 12 * (x * y).mean()
        assert abs(correlation) < 5 / np.sqrt(x.size), name
    bits = np.asarray(random_bits(jax.random.key(0), jnp.arange(ROWS), SHAPE))
    for bit in range(32):
        assert abs(((bits >> bit) & 1).mean() - 0.5) < 5 * 0.5 / np.sqrt(SIZE), bit


def test_keys_that_differ_in_one_bit():
    """Steps are counted up: neighbouring keys must not give neighbouring masks."""
    for step in range(1, 20):
        keys = [jax.random.fold_in(jax.random.key(0), s) for s in (step, step + 1)]
        first, second = (random_bits(key, jnp.arange(ROWS), SHAPE) >> 31 for key in keys)
        agree = float((first == second).mean())
        assert abs(agree - 0.5) < 5 * 0.5 / np.sqrt(SIZE)


def test_a_row_does_not_depend_on_the_others():
    rows = jnp.array([5, 17, 3])
    np.testing.assert_array_equal(uniform(rows=rows), uniform()[rows])
