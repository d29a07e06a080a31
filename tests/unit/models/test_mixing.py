"""Experts: their pool and their weights by hand, and in the model."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small_model import FEATURES, NUM_ITEMS, encode, make
from tssr_jax.models import mixing
from tssr_jax.models.apply import head_weights
from tssr_jax.models.content import Content
from tssr_jax.models.head import HeadWeights

ID, CONTENT, JOINT = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]]), jnp.array([[10.0, 20.0]])


def test_pools_by_hand():
    whole = mixing.pool({"id": ID, "content": CONTENT, "joint": JOINT})
    np.testing.assert_allclose(whole, [[11 / 3, 22 / 3, 13 / 3, 24 / 3]], rtol=1e-6)
    np.testing.assert_array_equal(mixing.pool({"id": ID}), [[1, 2, 0, 0]])
    np.testing.assert_array_equal(mixing.pool({"content": CONTENT}), [[0, 0, 3, 4]])
    np.testing.assert_array_equal(mixing.pool({"id": ID, "content": CONTENT}), [[0.5, 1, 1.5, 2]])
    whole = mixing.pool({"id": ID, "content": CONTENT, "joint": JOINT}, id_reads_content=True)
    np.testing.assert_allclose(whole, [[11 / 3, 22 / 3, 14 / 3, 26 / 3]], rtol=1e-6)
    np.testing.assert_array_equal(mixing.pool({"id": ID}, id_reads_content=True), [[1, 2, 1, 2]])


def test_weights_by_hand():
    weights = HeadWeights(jnp.array([[1.0], [2.0], [30.0], [40.0]]), jnp.array([5.0]))
    own = mixing.weights_of_each(weights)
    kernels = {name: one.kernel.tolist() for name, one in own.items()}
    assert kernels == {"id": [[1], [2]], "content": [[30], [40]], "joint": [[31], [42]]}
    assert all(one.bias.tolist() == [5] for one in own.values())
    own = mixing.weights_of_each(weights, id_reads_content=True)
    kernels = {name: one.kernel.tolist() for name, one in own.items()}
    assert kernels == {"id": [[31], [42]], "content": [[30], [40]], "joint": [[31], [42]]}


@pytest.mark.parametrize(
    ("num_cross_layers", "id_reads_content"), [(0, False), (2, False), (1, True)]
)
def test_experts_are_averaged(num_cross_layers, id_reads_content):
    """The head's scores, against those of each expert by its own vectors."""
    sequence = jnp.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    settings = {"num_cross_layers": num_cross_layers, "id_reads_content": id_reads_content}
    model, params = make(head="tied", mixing="experts", **settings)
    gated, _ = make(head="tied", **settings)
    known = np.arange(NUM_ITEMS + 1) != 5
    features = Content({"text": FEATURES}, known=known)
    outputs = encode(model, params, sequence, features)
    as_gated = encode(gated, params, sequence, features)
    projection = params["content_projection"]
    own = np.array(params["token_embedding"]["embedding"]) * known[:, None]
    content = FEATURES @ projection["kernel"] + projection["bias"]
    expected = (
        outputs.id.encoded @ (own + content if id_reads_content else own).T
        + outputs.content.encoded @ content.T
        + as_gated.fused @ (own + content).T
    ) / 3
    weights = head_weights(model, params, features)
    np.testing.assert_allclose(
        weights.score(outputs.fused, "float32"), expected + weights.bias, atol=1e-5
    )
    np.testing.assert_array_equal(outputs.experts["joint"], as_gated.fused)
    assert as_gated.experts == {}
    last = encode(model, params, sequence, features, last_only=True)
    np.testing.assert_allclose(last.fused, outputs.fused[:, -1:], atol=1e-6)


def test_a_single_stream_has_no_experts():
    sequence = jnp.array([[0, 1, 2, 3]])
    model, params = make(("content",), head="tied", mixing="experts")
    plain, _ = make(("content",), head="tied")
    found = encode(model, params, sequence, FEATURES)
    np.testing.assert_array_equal(found.fused, encode(plain, params, sequence, FEATURES).fused)
    kernel = head_weights(model, params, FEATURES).kernel
    np.testing.assert_array_equal(kernel, head_weights(plain, params, FEATURES).kernel)
