"""Blocks that normalise what their sublayers read, against the formula written out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from data_pipeline.packing import pack
from tests.small_model import FEATURES, encode, make
from tssr_jax.errors import UserError
from tssr_jax.models.streams import FINAL_NORMS
from tssr_jax.validation import validate_config

HISTORIES = jnp.array([[0, 0, 3, 1, 4, 2], [5, 6, 7, 8, 9, 10]])


def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def weights_of_heads(query, key, history, p):
    """One user, two heads: [2, length, length]."""
    q, k = dense(query, p["query"]), dense(key, p["key"])
    seen = np.tril(np.ones((len(history),) * 2, bool)) & (history > 0)
    heads = []
    for part in np.split(np.arange(q.shape[1]), 2):
        scores = np.where(seen, q[:, part] @ k[:, part].T / np.sqrt(len(part)), -1e9)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True))
    return np.stack(heads)


def attention(query, key_value, history, p):
    """One user: [length, d] by [length, d]."""
    v = np.split(dense(key_value, p["value"]), 2, axis=1)
    weights = weights_of_heads(query, key_value, history, p)
    heads = [own @ values for own, values in zip(weights, v, strict=True)]
    return dense(np.concatenate(heads, axis=-1), p["out"])


def gelu(x):
    return x * 0.5 * (1 + np.asarray(jax.scipy.special.erf(x / np.sqrt(2))))


def block(x, other, history, p):
    read = norm(x, p["attention_norm"])
    other = norm(other, p["attention_norm"])
    x = x + p["attention_residual_scale"] * attention(read, other, history, p["attention"])
    read = norm(x, p["ffn_norm"])
    hidden = gelu(dense(read, p["ffn"]["up"]))
    return x + p["ffn_residual_scale"] * dense(hidden, p["ffn"]["down"])


def perturbed(params):
    """Scales and biases of norms other than 1 and 0, so that each shows."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


@pytest.fixture(name="two", scope="module")
def fixture_two():
    """A model of two streams, its parameters, what it makes, and the states before each layer."""
    model, params = make(norm="pre", num_unimodal_layers=2, num_cross_layers=1)
    params = perturbed(params)
    outputs = encode(model, params, HISTORIES, FEATURES)
    positions = np.asarray(params["position_embedding"]["embedding"])
    inputs = [np.asarray(own.input_embedding) + positions for own in (outputs.id, outputs.content)]
    states = []
    for user, history in enumerate(np.asarray(HISTORIES)):
        x = [own[user].astype(np.float64) for own in inputs]
        states.append([x])
        for layer in range(2):
            x = [block(own, own, history, of(params, layer, s)) for s, own in enumerate(x)]
            states[user].append(x)
        crossed = [block(x[s], x[1 - s], history, of(params, 2, s)) for s in range(2)]
        states[user].append(crossed)
    return model, params, outputs, states


def of(params, layer, stream):
    """The parameters of one block."""
    blocks = {name: own for name, own in params["blocks"].items() if name not in FINAL_NORMS}
    return jax.tree.map(lambda p: np.asarray(p[layer, stream], np.float64), blocks)


def test_two_streams_by_the_formula(two):
    _, params, outputs, states = two
    finals = {name: params["blocks"][name] for name in FINAL_NORMS}
    for user, history in enumerate(np.asarray(HISTORIES)):
        shown = history > 0
        for s, found in enumerate((outputs.id, outputs.content)):
            last = {name: jax.tree.map(lambda p, s=s: p[s], own) for name, own in finals.items()}
            encoded = norm(states[user][2][s], last["unimodal_norm"])
            crossed = norm(states[user][3][s], last["crossed_norm"])
            np.testing.assert_allclose(found.encoded[user][shown], encoded[shown], atol=1e-4)
            np.testing.assert_allclose(found.crossed[user][shown], crossed[shown], atol=1e-4)


def test_attention_by_the_formula(two):
    model, params, _, states = two
    weights = model.apply({"params": params}, HISTORIES, FEATURES, method="attention")
    assert weights.shape == (3, 2, 2, 6, 6)
    history = np.asarray(HISTORIES)[1]
    for layer, before in enumerate(states[1][:3]):
        for s in range(2):
            p = of(params, layer, s)
            query, key = before[s], before[s] if layer < 2 else before[1 - s]
            expected = weights_of_heads(
                norm(query, p["attention_norm"]), norm(key, p["attention_norm"]), history,
                p["attention"],
            ).mean(axis=0)  # fmt: skip
            np.testing.assert_allclose(weights[layer, s, 1], expected, atol=1e-5)


@pytest.mark.parametrize("streams", [("id", "content"), ("id",)])
def test_the_last_position_alone_is_the_same(streams):
    model, params = make(streams=streams, norm="pre", num_unimodal_layers=2)
    params = perturbed(params)
    whole = encode(model, params, HISTORIES, FEATURES)
    last = encode(model, params, HISTORIES, FEATURES, last_only=True)
    np.testing.assert_allclose(last.fused[:, 0], whole.fused[:, -1], atol=1e-5)


def test_packed_windows_and_gradients_are_the_same():
    """Of the last position, with and without what is kept for the gradient."""
    windows = np.array([[0, 0, 0, 0, 3, 4], [0, 0, 0, 5, 6, 7]], np.int32)
    packed = pack(windows, np.array([2, 3]), 1)
    found = []
    for keep_products, rows in ((True, None), (False, None), (True, packed)):
        model, params = make(norm="pre", keep_products=keep_products)

        def loss(params, model=model, rows=rows):
            return (encode(model, params, windows, FEATURES, rows).fused[:, -1] ** 3).sum()

        found.append(jax.value_and_grad(loss)(perturbed(params)))
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(found[0][1]["blocks"]["crossed_norm"]))
    for other in found[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), found[0], other)


def test_one_stream_has_one_final_norm():
    _, params = make(streams=("id",), norm="pre")
    assert set(FINAL_NORMS) & set(params["blocks"]) == {"unimodal_norm"}
    _, params = make(streams=("id",))
    assert not set(FINAL_NORMS) & set(params["blocks"])


def test_an_unknown_norm_is_told():
    config = default.get_config()
    config.model.norm = "both"
    with pytest.raises(UserError, match=r"config\.model\.norm is 'both'; known: post, pre"):
        validate_config(config)
