"""Blocks that normalise what their sublayers read, against the formula written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
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


def attention(query, key_value, history, p):
    """One user, two heads: [length, d] by [length, d]."""
    q, k, v = dense(query, p["query"]), dense(key_value, p["key"]), dense(key_value, p["value"])
    seen = np.tril(np.ones((len(history),) * 2, bool)) & (history > 0)
    heads = []
    for part in np.split(np.arange(q.shape[1]), 2):
        scores = np.where(seen, q[:, part] @ k[:, part].T / np.sqrt(len(part)), -1e9)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
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


def test_two_streams_by_the_formula():
    model, params = make(norm="pre", num_unimodal_layers=2, num_cross_layers=1)
    params = perturbed(params)
    outputs = encode(model, params, HISTORIES, FEATURES)
    blocks = params["blocks"]
    finals = {name: blocks[name] for name in FINAL_NORMS}
    blocks = {name: own for name, own in blocks.items() if name not in FINAL_NORMS}

    def of(layer, stream):
        return jax.tree.map(lambda p: np.asarray(p[layer, stream], np.float64), blocks)

    positions = np.asarray(params["position_embedding"]["embedding"])
    inputs = [np.asarray(own.input_embedding) + positions for own in (outputs.id, outputs.content)]
    for user, history in enumerate(np.asarray(HISTORIES)):
        x = [own[user].astype(np.float64) for own in inputs]
        for layer in range(2):
            x = [block(own, own, history, of(layer, s)) for s, own in enumerate(x)]
        crossed = [block(x[s], x[1 - s], history, of(2, s)) for s in range(2)]
        for s, states in enumerate((outputs.id, outputs.content)):
            last = {name: jax.tree.map(lambda p, s=s: p[s], own) for name, own in finals.items()}
            shown = history > 0
            np.testing.assert_allclose(
                states.encoded[user][shown], norm(x[s], last["unimodal_norm"])[shown], atol=1e-4
            )
            np.testing.assert_allclose(
                states.crossed[user][shown],
                norm(crossed[s], last["crossed_norm"])[shown],
                atol=1e-4,
            )


@pytest.mark.parametrize("streams", [("id", "content"), ("id",)])
def test_the_last_position_alone_is_the_same(streams):
    model, params = make(streams=streams, norm="pre", num_unimodal_layers=2)
    params = perturbed(params)
    whole = encode(model, params, HISTORIES, FEATURES)
    last = encode(model, params, HISTORIES, FEATURES, last_only=True)
    np.testing.assert_allclose(last.fused[:, 0], whole.fused[:, -1], atol=1e-5)


def test_attention_is_told_as_of_post_norm():
    model, params = make(norm="pre")
    weights = model.apply({"params": params}, HISTORIES, FEATURES, method="attention")
    assert weights.shape == (3, 2, 2, 6, 6)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-5)


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
