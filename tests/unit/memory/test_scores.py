"""Places and scores, by hand and against the whole matrix."""

import numpy as np

from tssr_jax.memory.scores import (
    Neighbours,
    history_weights,
    joined,
    neighbour_scores,
    places,
)
from tssr_jax.parallel.catalogue import Catalogue


def test_items_of_one_time_share_their_mean_place():
    times = np.array([[1, 2, 2, 3, 5, 5, 5], [1, 1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6, 7]])
    expected = [[6, 4.5, 4.5, 3, 1, 1, 1], [3] * 7, [6, 5, 4, 3, 2, 1, 0]]
    np.testing.assert_array_equal(places(times), expected)


def test_padding_has_no_weight_and_no_place():
    items = np.array([[0, 0, 7, 8], [0, 0, 0, 0]])
    times = np.array([[0, 0, 0, 0], [0, 0, 0, 0]])  # two items in the first minute of 1970
    expected = [[0, 0, 0.5**0.5, 0.5**0.5], [0] * 4]
    np.testing.assert_allclose(history_weights(items, times, 0.5), expected)


def test_scores_are_those_of_the_whole_matrix():
    rng = np.random.default_rng(0)
    likeness = np.where(rng.random((7, 7)) < 0.5, rng.random((7, 7)), 0.0).astype(np.float32)
    order = np.argsort(-likeness, axis=1)
    neighbours = Neighbours(order, np.take_along_axis(likeness, order, axis=1))
    items = np.array([[0, 0, 3], [2, 5, 2], [0, 0, 0]])
    weights = np.array([[0, 0, 1], [0.25, 0.5, 1], [0, 0, 0]], np.float32)
    expected = [likeness[3], likeness[2] * 1.25 + 0.5 * likeness[5], np.zeros(7)]
    found = neighbour_scores(neighbours, items, weights, Catalogue(6))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    both = joined(neighbours, Neighbours(order[:, :1], np.ones((7, 1), np.float32)), 0.5)
    more = np.array(expected)
    more[0, order[3, 0]] += 0.5
    np.testing.assert_allclose(
        neighbour_scores(both, items, weights, Catalogue(6))[0], more[0], rtol=1e-6
    )
