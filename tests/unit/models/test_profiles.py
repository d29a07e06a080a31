"""What is known of users, in the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tssr_jax.data_pipeline.packing import pack
from tssr_jax.data_pipeline.profiles import code_of, sizes
from tssr_jax.models.apply import encode
from tssr_jax.models.init import init_params
from tssr_jax.models.tssr import TSSR

FIELDS = {"gender": ["F", "M"], "age": ["20s", "30s", "40s"]}
PROFILES = ({"gender": "M", "age": "40s"}, {"age": "20s"})
FEATURES = {"text": jax.random.normal(jax.random.key(1), (13, 3))}
ITEMS = jnp.array([[0, 0, 3, 4, 5, 6], [0, 7, 8, 9, 1, 2]])
CODES = jnp.where(ITEMS > 0, jnp.array([code_of(own, FIELDS) for own in PROFILES])[:, None], 0)


def make(**fields):
    settings = {"d_model": 8, "num_heads": 2, "d_ffn": 8, "max_length": 6, "num_cross_layers": 1}
    model = TSSR(12, **{"profile_sizes": sizes(FIELDS), **settings, "dropout_rate": 0.0, **fields})
    return model, init_params(model, {"text": 3}, seed=0)


def test_vectors_of_values_are_added_to_what_the_first_blocks_read():
    """Without blocks, what comes out is what goes in."""
    model, params = make(num_unimodal_layers=0, num_cross_layers=0)
    table = params["profile_embedding"]["embedding"]
    assert table.shape == (3 + 4, 8)
    own, other = (
        encode(model, params, ITEMS, FEATURES, side=side) for side in ({"profiles": CODES}, {})
    )
    # Rows: no gender, F, M; no age, 20s, 30s, 40s. What is not told adds nothing.
    expected = (table[2] + table[6], table[4])
    for stream in ("id", "content"):
        added = getattr(own, stream).encoded - getattr(other, stream).encoded
        for user in range(2):
            there = np.asarray(ITEMS[user] > 0)
            np.testing.assert_allclose(
                added[user, there], np.tile(expected[user], (there.sum(), 1)), atol=1e-6
            )
            assert not added[user, ~there].any()


@pytest.mark.parametrize("streams", [("id", "content"), ("id",), ("sum",)])
def test_packed_rows_read_their_own_users(streams):
    model, params = make(streams=streams)
    features = None if streams == ("id",) else FEATURES
    items = np.asarray(ITEMS) * (np.arange(6) >= [[3], [3]])  # both fit into one row
    codes = jnp.where(items > 0, CODES, 0)
    packed = pack(items, np.count_nonzero(items, axis=1), 1)
    assert packed["items"].shape[0] == 1
    whole = encode(model, params, items, features, side={"profiles": codes}).fused
    own = encode(model, params, items, features, packed, side={"profiles": codes}).fused
    np.testing.assert_allclose(own[items > 0], whole[items > 0], atol=1e-5)
    others = encode(model, params, items, features, packed, side={"profiles": codes[::-1]}).fused
    assert np.abs(others - own)[items > 0].min(axis=0).max() > 1e-4


def test_a_model_without_fields_is_that_of_before():
    model, params = make(profile_sizes=())
    assert "profile_embedding" not in params
    plain = encode(model, params, ITEMS, FEATURES).fused
    read = encode(model, params, ITEMS, FEATURES, side={"profiles": CODES}).fused
    np.testing.assert_array_equal(read, plain)
    # Users of whom nothing is told are users without fields.
    reading, own = make()
    nothing = {"profiles": jnp.zeros_like(CODES)}
    told = encode(reading, {**own, **params}, ITEMS, FEATURES, side=nothing).fused
    np.testing.assert_array_equal(told, plain)
