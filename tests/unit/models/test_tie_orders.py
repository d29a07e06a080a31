"""Items of one time in several orders: by hand, and as the mean of single orders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tssr_jax.models.apply import encode, head_weights, newest, score
from tssr_jax.models.init import init_params
from tssr_jax.models.tie_orders import in_tie_order, visited
from tssr_jax.models.tssr import TSSR

ITEMS = jnp.array([[0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 6, 7]])
TIMES = jnp.array([[0, 5, 5, 5, 8, 8], [0, 0, 0, 0, 0, 1]])


@pytest.fixture(name="model", scope="module")
def fixture_model():
    model = TSSR(9, ("id",), d_model=8, num_heads=2, d_ffn=8, max_length=6, tie_orders=4)
    params = init_params(model, {}, seed=0)
    return model, jax.tree.map(lambda x: x + 0.3 if x.ndim == 0 else x, params)


def test_orders_by_hand():
    orders = [in_tie_order(ITEMS, TIMES, order, 4).tolist() for order in range(4)]
    assert [order[0] for order in orders] == [
        [0, 1, 2, 3, 4, 5],
        [0, 1, 2, 3, 4, 5],  # a quarter of three, or two, items is none
        [0, 2, 3, 1, 5, 4],
        [0, 3, 1, 2, 5, 4],
    ]
    assert all(order[1] == [0, 0, 0, 0, 6, 7] for order in orders)  # padding is no item of time 0


@pytest.mark.parametrize(
    ("times", "number", "needed"),
    [
        ([[0, 5, 5, 5, 8, 8]], 4, 4),
        ([[0, 4, 5, 5, 8, 8]], 4, 2),
        ([[0, 4, 5, 5, 8, 8]], 3, 3),
        ([[0, 4, 5, 6, 7, 8]], 4, 1),
    ],
)
def test_as_few_orders_as_have_the_mean_of_all(times, number, needed, model):
    model, params = model
    items, times = ITEMS[:1], jnp.array(times)
    orders, found = visited(items, times, number)
    assert found == needed
    assert sorted(orders.tolist()) == list(range(number))
    states = [
        encode(model, params, in_tie_order(items, times, order, number), last_only=True).fused
        for order in orders
    ]
    np.testing.assert_allclose(sum(states[:needed]) / needed, sum(states) / number, rtol=1e-5)


def test_padding_is_no_item_of_one_time():
    assert visited(ITEMS[1:], TIMES[1:], 4)[1] == 1


def test_each_of_four_items_comes_last():
    items, times = jnp.arange(1, 5)[None], jnp.ones((1, 4), jnp.int32)
    last = [int(in_tie_order(items, times, order, 4)[0, -1]) for order in range(4)]
    assert sorted(last) == [1, 2, 3, 4]


@pytest.mark.parametrize("rows", [2, 18])
def test_the_state_is_the_mean_of_the_orders(model, rows):
    """Of a few rows, two orders are encoded at once."""
    model, params = model
    several = {"item_sequence": jnp.tile(ITEMS, (9, 1))[:rows], "times": jnp.tile(TIMES, (9, 1))}
    found = newest(model, params, {**several, "times": several["times"][:rows]})
    found = jax.tree.map(lambda states: states[-2:], found)
    states = [
        encode(model, params, in_tie_order(ITEMS, TIMES, order, 4), last_only=True).fused
        for order in range(4)
    ]
    np.testing.assert_allclose(found.fused, sum(states) / 4, rtol=1e-5, atol=1e-6)
    assert np.abs(states[3] - states[0])[0].max() > 1e-3
    expected = head_weights(model, params).score(found.fused[:, -1], "float32")
    np.testing.assert_allclose(score(model, params, ITEMS, times=TIMES), expected, rtol=1e-5)


def test_without_ties_it_is_the_state(model):
    model, params = model
    plain = encode(model, params, ITEMS, last_only=True).fused
    for batch in ({}, {"times": jnp.arange(6)[None] + 0 * ITEMS}):
        found = newest(model, params, {"item_sequence": ITEMS, **batch}).fused
        np.testing.assert_allclose(found, plain, rtol=1e-6)


def test_four_orders_of_four_items_do_not_depend_on_the_first(model):
    """They are the four rotations, whichever comes first."""
    model, params = model
    times = jnp.ones((1, 4), jnp.int32)
    scores = [
        score(model, params, jnp.array([own]), times=times) for own in ([1, 2, 3, 4], [3, 4, 1, 2])
    ]
    np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-6)
