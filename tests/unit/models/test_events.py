"""Events of interactions in the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tssr_jax.data_pipeline.packing import pack
from tssr_jax.losses.objective import LossConfig, tssr_loss
from tssr_jax.models.apply import attention, encode, newest
from tssr_jax.models.init import init_params
from tssr_jax.models.tie_orders import in_tie_order
from tssr_jax.models.tssr import TSSR

WIDTH, NUM_ITEMS = 3, 12
FEATURES = {"text": jax.random.normal(jax.random.key(1), (NUM_ITEMS + 1, WIDTH))}
OTHERS = jnp.array([[0, 0, 2, 1, 1, 2], [0, 1, 2, 2, 1, 1]])
ITEMS = jnp.array([[0, 0, 3, 4, 5, 6], [0, 7, 8, 9, 1, 2]])
EVENTS = jnp.array([[0, 0, 1, 2, 2, 1], [0, 2, 1, 1, 2, 2]])


def make(**fields):
    settings = {"num_events": 2, "d_model": 8, "num_heads": 2, "d_ffn": 8, "max_length": 6}
    model = TSSR(NUM_ITEMS, **{**settings, "num_cross_layers": 1, "dropout_rate": 0.0, **fields})
    return model, init_params(model, {"text": WIDTH}, seed=0)


def test_vectors_of_events_are_added_to_what_the_first_blocks_read():
    """Without blocks, what comes out is what goes in."""
    model, params = make(num_unimodal_layers=0, num_cross_layers=0)
    assert params["event_embedding"]["embedding"].shape == (3, 8)
    outputs = encode(model, params, ITEMS, FEATURES, side={"events": EVENTS})
    plain = encode(model, params, ITEMS, FEATURES)
    vectors = params["event_embedding"]["embedding"][EVENTS]
    for own, other in ((outputs.id, plain.id), (outputs.content, plain.content)):
        added = own.encoded - other.encoded
        np.testing.assert_allclose(added[EVENTS > 0], vectors[EVENTS > 0], atol=1e-6)
        # Padding and unknown events add nothing; targets of the item-grained loss have no events.
        assert not added[EVENTS == 0].any()
        np.testing.assert_array_equal(own.input_embedding, other.input_embedding)


def test_a_model_without_events_is_that_of_before():
    model, params = make(num_events=0)
    assert "event_embedding" not in params
    plain = encode(model, params, ITEMS, FEATURES).fused
    np.testing.assert_array_equal(
        encode(model, params, ITEMS, FEATURES, side={"events": EVENTS}).fused, plain
    )
    # Unknown events are no events.
    reading, own = make()
    own = {**own, **params}
    np.testing.assert_array_equal(encode(reading, own, ITEMS, FEATURES).fused, plain)
    nothing = jnp.zeros_like(EVENTS)
    np.testing.assert_array_equal(
        encode(reading, own, ITEMS, FEATURES, side={"events": nothing}).fused, plain
    )


@pytest.mark.parametrize("streams", [("id", "content"), ("id",)])
def test_packed_windows_have_the_same_states(streams):
    model, params = make(streams=streams)
    features = FEATURES if "content" in streams else None
    packed = pack(np.asarray(ITEMS, np.int32), np.array([4, 5]), 1)
    whole = encode(model, params, ITEMS, features, side={"events": EVENTS}).fused
    own = encode(model, params, ITEMS, features, packed, side={"events": EVENTS}).fused
    there = np.asarray(ITEMS) > 0
    np.testing.assert_allclose(own[there], whole[there], atol=1e-6)
    other = encode(model, params, ITEMS, features, packed, side={"events": OTHERS}).fused
    assert np.abs(other - own)[there].max() > 1e-3


def test_events_stay_with_their_items_in_other_orders():
    model, params = make(tie_orders=2)
    times = jnp.array([[0, 0, 1, 5, 5, 9], [0, 2, 2, 3, 4, 4]])
    found = newest(
        model, params, {"item_sequence": ITEMS, "times": times, "events": EVENTS}, FEATURES
    ).fused
    orders = [
        [in_tie_order(ITEMS, times, order, 2, values) for values in (ITEMS, EVENTS)]
        for order in (0, 1)
    ]
    pairs = {tuple(pair) for own in orders for pair in zip(*map(np.ravel, own), strict=True)}
    assert pairs == set(zip(ITEMS.ravel().tolist(), EVENTS.ravel().tolist(), strict=True))
    expected = [
        encode(model, params, items, FEATURES, side={"events": events}, last_only=True).fused
        for items, events in orders
    ]
    np.testing.assert_allclose(found, sum(expected) / 2, atol=1e-6)


def test_attention_and_loss_read_events():
    model, params = make(num_unimodal_layers=2)
    own, other = (
        attention(model, params, ITEMS, FEATURES, {"events": x}) for x in (EVENTS, OTHERS)
    )
    assert np.abs(own - other).max() > 1e-4
    labels = jnp.array([[0, 0, 4, 5, 6, 7], [0, 8, 9, 1, 2, 3]])
    batch = {"item_sequence": ITEMS, "labels": labels, "events": EVENTS}
    config = LossConfig(lambda_user=0.0, lambda_item=0.0)
    weights = jnp.where(labels % 2 == 0, 0.0, 2.0)

    def by_hand(params):
        outputs = encode(model, params, ITEMS, FEATURES, side={"events": EVENTS})
        kernel, bias = params["output"]["kernel"], params["output"]["bias"]
        scores = (outputs.fused @ kernel + bias)[..., 1:]
        losses = jax.nn.log_softmax(scores)
        picked = jnp.take_along_axis(losses, labels[..., None] - 1, axis=-1)[..., 0]
        counts = jnp.where(labels > 0, weights, 0.0)
        return -(counts * picked).sum() / counts.sum()

    def ours(params):
        return tssr_loss(model, params, {**batch, "label_weights": weights}, FEATURES, config)[0]

    value, gradients = jax.value_and_grad(ours)(params)
    expected, wanted = jax.value_and_grad(by_hand)(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), gradients, wanted)
    assert np.abs(gradients["event_embedding"]["embedding"][1:]).max() > 0
