"""Drawn classes: their chances, and how often they come."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tssr_jax.losses.drawn_items import cumulative_chances, draw

COUNTS = np.array([0, 10, 1, 40, 0, 90])


@pytest.mark.parametrize(
    ("power", "expected"),
    [
        (0.0, [0, 1 / 4, 1 / 4, 1 / 4, 0, 1 / 4]),
        (1.0, [0, 10 / 141, 1 / 141, 40 / 141, 0, 90 / 141]),
        (0.5, np.array([0, np.sqrt(10), 1, np.sqrt(40), 0, np.sqrt(90)]) / 19.9736648),
    ],
)
def test_chances_by_hand(power, expected):
    cumulative = cumulative_chances((COUNTS > 0) * np.float64(COUNTS) ** power)
    chances = np.diff(cumulative, prepend=0) / cumulative[-1]
    np.testing.assert_allclose(chances, expected, atol=1e-8)


def test_a_million_classes_keep_their_chances():
    """In float32 sums the last of them would lose a sixteenth."""
    counts = np.ones(1_000_001, np.int64)
    counts[0] = 0
    whole = np.diff(cumulative_chances(counts), prepend=0)
    assert whole[0] == 0 and (whole[1:] == whole[1]).all()


def test_no_class_may_be_drawn():
    with pytest.raises(ValueError, match="no class"):
        cumulative_chances(np.zeros(2))


def test_draws_come_as_often_as_expected():
    number = 40_000
    cumulative = jnp.asarray(cumulative_chances(COUNTS))
    drawn = draw(cumulative, number, jax.random.key(0))
    found = np.bincount(drawn.classes, minlength=COUNTS.size)
    expected = number * np.array([0, 10, 1, 40, 0, 90]) / 141
    assert found[0] == found[4] == 0
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(expected.max()))
    np.testing.assert_allclose(
        np.exp(drawn.log_expected), expected[np.asarray(drawn.classes)], rtol=1e-5
    )


def test_draws_are_a_function_of_the_key():
    cumulative = jnp.asarray(cumulative_chances(COUNTS))
    one, same, other = (draw(cumulative, 50, jax.random.key(seed)).classes for seed in (1, 1, 2))
    assert (one == same).all() and (one != other).any()
