"""Properties of the model that no reference number shows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small_model import FEATURE_DIM, FEATURES, NUM_ITEMS, encode, make
from tssr_jax.config import default
from tssr_jax.data_pipeline.packing import pack
from tssr_jax.models.apply import attention, head_weights
from tssr_jax.models.attention import causal_padding_mask
from tssr_jax.models.content import Content
from tssr_jax.models.head import unit
from tssr_jax.models.init import init_params, make_model
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.platform import compiled_for


def test_mask_by_hand():
    mask = causal_padding_mask(jnp.array([[0, 7, 8]]))
    expected = [[False, False, False], [False, True, False], [False, True, True]]
    np.testing.assert_array_equal(mask[0], expected)


def test_no_position_sees_the_future():
    model, params = make()
    first = jnp.array([[0, 1, 2, 3, 4, 5]])
    second = first.at[0, 4:].set(jnp.array([9, 10]))
    states = [encode(model, params, sequence, FEATURES).fused for sequence in (first, second)]
    np.testing.assert_allclose(states[0][:, 1:4], states[1][:, 1:4], atol=1e-6)
    assert np.abs(states[0][:, 4] - states[1][:, 4]).max() > 1e-3


def test_items_do_not_see_padding():
    model, params = make()
    sequence = jnp.array([[0, 0, 3, 4, 5, 6]])
    changed = FEATURES.at[0].set(100.0)
    params_changed = jax.tree.map(lambda x: x, params)
    table = params["token_embedding"]["embedding"]
    params_changed["token_embedding"] = {"embedding": table.at[0].set(100.0)}
    states = encode(model, params, sequence, FEATURES).fused
    other = encode(model, params_changed, sequence, changed).fused
    np.testing.assert_allclose(states[:, 2:], other[:, 2:], atol=1e-6)


def test_a_shorter_window_gives_the_same_last_state():
    model, params = make()
    long = encode(model, params, jnp.array([[0, 0, 0, 4, 5, 6]]), FEATURES)
    short = encode(model, params, jnp.array([[4, 5, 6]]), FEATURES)
    np.testing.assert_allclose(long.fused[:, -1], short.fused[:, -1], atol=1e-6)


@pytest.mark.parametrize("streams", [("id", "content"), ("id",)])
def test_a_program_for_tpus_computes_what_one_for_processors_does(streams):
    """There the streams' blocks are written out; dropout's masks are the same."""
    model, params = make(streams=streams)
    sequence = jnp.array([[0, 1, 2, 3, 4, 5], [4, 6, 1, 2, 9, 8]])
    weights = jax.random.normal(jax.random.key(5), (2, 6, 8))
    for key in (None, jax.random.key(3)):

        def fused(params, key=key):
            features = FEATURES if "content" in streams else None
            return encode(model, params, sequence, features, dropout_key=key).fused

        def loss(params):
            return (fused(params) * weights).sum()

        states, gradients = fused(params), jax.grad(loss)(params)
        with compiled_for("tpu"):
            np.testing.assert_allclose(fused(params), states, rtol=1e-5, atol=1e-6)
            others = jax.grad(loss)(params)
            jaxpr = jax.make_jaxpr(loss)(params)
        assert str(jaxpr) != str(jax.make_jaxpr(loss)(params))
        for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(others), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("streams", "absent"),
    [
        (("id",), {"content_projection", "gate"}),
        (("content",), {"token_embedding", "gate"}),
    ],
)
def test_one_stream_uses_the_same_modules(streams, absent):
    _, both = make()
    model, params = make(streams)
    assert both.keys() - params.keys() == absent and params.keys() <= both.keys()
    layers_and_streams = params["blocks"]["attention"]["query"]["kernel"].shape[:2]
    assert layers_and_streams == (1, 1)
    outputs = encode(model, params, jnp.array([[1, 2, 3]]), FEATURES)
    states = outputs.id if streams == ("id",) else outputs.content
    assert outputs.gate is None
    np.testing.assert_array_equal(outputs.fused, states.encoded)


@pytest.mark.parametrize("streams", [("id", "content"), ("id",), ("content",)])
@pytest.mark.parametrize("num_unimodal_layers", [0, 1, 2])
def test_the_last_state_alone_is_that_of_the_whole(streams, num_unimodal_layers):
    model, params = make(streams, num_unimodal_layers=num_unimodal_layers)
    sequence = jnp.array([[0, 0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10], [0, 0, 0, 0, 0, 3]])
    whole = encode(model, params, sequence, FEATURES).fused
    last = encode(model, params, sequence, FEATURES, last_only=True).fused
    assert last.shape == (3, 1, 8)
    np.testing.assert_allclose(last[:, 0], whole[:, -1], atol=1e-6)


def test_streams_are_mixed_without_a_gate():
    sequence = jnp.array([[0, 1, 2, 3]])
    model, params = make(mixing="sum")
    outputs = encode(model, params, sequence, FEATURES)
    assert outputs.gate is None and "gate" not in params
    np.testing.assert_allclose(
        outputs.fused, outputs.id.crossed + outputs.content.crossed, atol=1e-6
    )
    model, params = make(mixing="concatenation")
    outputs = encode(model, params, sequence, FEATURES)
    own, other = jnp.split(params["concatenation"]["kernel"], 2)
    expected = outputs.id.crossed @ own + outputs.content.crossed @ other + 0.1
    np.testing.assert_allclose(outputs.fused, expected, atol=1e-5)


def test_content_can_be_added_to_ids():
    model, params = make(("sum",))
    sequence = jnp.array([[0, 1, 2, 3]])
    table, projection = params["token_embedding"]["embedding"], params["content_projection"]
    added = table + FEATURES @ projection["kernel"] + projection["bias"]
    ids_only, own = make(("id",))
    own = {name: params[name] for name in own} | {"token_embedding": {"embedding": added}}
    np.testing.assert_allclose(
        encode(model, params, sequence, FEATURES).fused[:, 1:],
        encode(ids_only, own, sequence, None).fused[:, 1:],
        atol=1e-5,
    )


def test_the_id_stream_can_read_content():
    sequence = jnp.array([[0, 1, 2, 3]])
    model, params = make(id_reads_content=True, num_cross_layers=0)
    outputs = encode(model, params, sequence, FEATURES)
    alone, _ = make(("sum",))
    own = {name: x for name, x in params.items() if name not in {"gate", "blocks"}}
    own["blocks"] = jax.tree.map(lambda x: x[:, :1], params["blocks"])  # the id stream's
    expected = encode(alone, own, sequence, FEATURES).fused
    np.testing.assert_allclose(outputs.id.encoded, expected, atol=1e-6)
    for streams in (("id",), ("content",)):  # has no say with one stream
        alone, own = make(streams)
        told = encode(alone.clone(id_reads_content=True), own, sequence, FEATURES).fused
        np.testing.assert_array_equal(told, encode(alone, own, sequence, FEATURES).fused)
    plain, _ = make(num_cross_layers=0)
    as_before = encode(plain, params, sequence, FEATURES)
    np.testing.assert_array_equal(outputs.id.input_embedding, as_before.id.input_embedding)
    np.testing.assert_array_equal(outputs.content.encoded, as_before.content.encoded)


@pytest.mark.parametrize("streams", [("id", "content"), ("id",), ("content",), ("sum",)])
def test_a_tied_head_scores_by_what_the_streams_read(streams):
    model, params = make(streams, head="tied")
    features = Content({"text": FEATURES}, known=np.arange(NUM_ITEMS + 1) != 5)
    if streams == ("id",):
        features = FEATURES
    kernel, bias = head_weights(model, params, features)
    vectors = np.zeros((NUM_ITEMS + 1, 8))
    if streams != ("content",):
        table = np.array(params["token_embedding"]["embedding"])
        if streams != ("id",):
            table[5] = 0.0  # never trained: its content alone counts
        vectors += table
    if streams != ("id",):
        projection = params["content_projection"]
        vectors += FEATURES @ projection["kernel"] + projection["bias"]
    np.testing.assert_allclose(kernel, vectors.T, atol=1e-6)
    assert params["output"].keys() == {"bias"} and bias.shape == (NUM_ITEMS + 1,)


def test_content_can_pass_a_hidden_layer():
    model, params = make(("content",), content_hidden=5)
    features = FEATURES.at[3].set(0.0)  # without content: the learnt vector, as before
    sequence = jnp.array([[1, 3, 2]])
    own = params["content_projection"]
    assert own["hidden_kernel"].shape == (FEATURE_DIM, 5) and own["hidden_output"].shape == (5, 8)
    x = np.array(features)[[1, 2]]
    entries = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True))
    inner = entries @ own["hidden_kernel"] + own["hidden_bias"]
    inner = jax.nn.gelu(inner, approximate=False) @ own["hidden_output"]
    expected = x @ own["kernel"] + own["bias"] + inner
    for scale in (1.0, 100.0):  # the hidden layer's share does not depend on it
        outputs = encode(model, params, sequence, scale * features)
        found = np.array(outputs.content.input_embedding[0])
        linear = (scale - 1) * x @ own["kernel"]
        np.testing.assert_allclose(
            found[jnp.array([0, 2])], expected + linear, rtol=1e-4, atol=1e-4
        )
        np.testing.assert_array_equal(found[1], own["no_content"])


def test_a_vector_of_zeros_has_a_score_and_a_gradient():
    value, gradient = jax.value_and_grad(lambda x: unit(x).sum())(jnp.zeros(3))
    assert value == 0 and np.isfinite(gradient).all()


def test_attention_by_hand():
    model, params = make()
    sequence = jnp.array([[0, 0, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]])
    weights = attention(model, params, sequence, FEATURES)
    assert weights.shape == (3, 2, 2, 6, 6)
    outputs = encode(model, params, sequence, FEATURES)
    positions = params["position_embedding"]["embedding"]
    mask = causal_padding_mask(sequence)
    own = [s.input_embedding + positions for s in (outputs.id, outputs.content)]
    encoded = [outputs.id.encoded, outputs.content.encoded]
    # Queries and keys of the first layer, and of the first cross-attention layer, by stream.
    for layer, queries, keys in ((0, own, own), (1, encoded, encoded[::-1])):
        for stream in (0, 1):
            block = jax.tree.map(lambda p, at=(layer, stream): p[at], params["blocks"]["attention"])
            q, k = (
                (x[stream] @ block[name]["kernel"] + block[name]["bias"]).reshape(2, 6, 2, 4)
                for name, x in (("query", queries), ("key", keys))
            )
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2
            expected = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e9)).mean(axis=1)
            np.testing.assert_allclose(weights[layer, stream], expected, atol=1e-6)
    with pytest.raises(ValueError, match="gru has no attention"):
        attention(*make(("id",), encoder="gru"), sequence, None)


def test_a_recurrent_state_by_hand():
    """Against the equations of a GRU, one position after the other, from the first item on."""
    model, params = make(("id",), encoder="gru")
    params["blocks"]["input_norm"]["scale"] = jnp.linspace(0.5, 2.0, 8)
    own, last = params["blocks"]["layer_0"], params["blocks"]["projection"]
    sequence = [0, 0, 3, 7, 5]
    positions = params["position_embedding"]["embedding"][-5:]
    state = np.zeros(8)
    for place in (2, 3, 4):
        x = params["token_embedding"]["embedding"][sequence[place]] + positions[place]
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * np.linspace(0.5, 2.0, 8)
        r, z, n = (x @ own[name]["kernel"] + own[name]["bias"] for name in ("ir", "iz", "in"))
        r = jax.nn.sigmoid(r + state @ own["hr"]["kernel"])
        z = jax.nn.sigmoid(z + state @ own["hz"]["kernel"])
        n = jnp.tanh(n + r * (state @ own["hn"]["kernel"] + own["hn"]["bias"]))
        state = (1 - z) * n + z * state
    fused = encode(model, params, jnp.array([sequence]), None).fused
    state = state @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(fused[0, -1], state, atol=1e-5)
    last = encode(model, params, jnp.array([sequence]), None, last_only=True).fused
    np.testing.assert_array_equal(last, fused[:, -1:])


def test_packed_windows_have_recurrent_states_of_their_own():
    model, params = make(("id",), encoder="gru", num_unimodal_layers=2)
    windows = np.array([[0, 0, 0, 0, 3, 4], [0, 0, 0, 5, 6, 7]], np.int32)
    packed = pack(windows, np.array([2, 3]), 1)
    whole = encode(model, params, windows, None).fused
    own = encode(model, params, windows, None, packed).fused
    np.testing.assert_allclose(
        np.where(windows[..., None] > 0, own, 0), np.where(windows[..., None] > 0, whole, 0),
        atol=1e-6,
    )  # fmt: skip


def test_what_is_kept_for_the_gradient_changes_no_gradient():
    sequence = jnp.array([[0, 0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10]])
    gradients, memory = [], []
    for keep_products in (True, False):
        model, params = make(keep_products=keep_products)

        def loss(params, model=model):
            return (encode(model, params, sequence, FEATURES).fused ** 2).sum()

        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        gradients.append(compiled(params))
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
    # Sums of numbers up to 16, added up in another order.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), *gradients)
    assert memory[1] < memory[0]


def test_content_stream_without_features_is_an_error():
    model, params = make()
    with pytest.raises(ValueError, match="needs features of 'text'"):
        encode(model, params, jnp.array([[1, 2]]), None)


def test_last_only_is_for_ranking():
    model, params = make()
    sequence = jnp.array([[1, 2, 3]])
    packed = {"items": sequence, "segments": sequence, "positions": sequence, "places": sequence}
    with pytest.raises(ValueError, match="packs no windows"):
        encode(model, params, sequence, FEATURES, packed, last_only=True)
    with pytest.raises(ValueError, match="dropout"):
        encode(model, params, sequence, FEATURES, dropout_key=jax.random.key(0), last_only=True)


def test_projecting_before_or_after_the_gather_is_the_same():
    model, params = make()
    few = encode(model, params, jnp.array([[1, 2]]), FEATURES)  # 2 positions, 13 rows
    many = encode(model, params, jnp.tile(jnp.array([[1, 2]]), (20, 1)), FEATURES)
    np.testing.assert_allclose(few.fused[0], many.fused[7], atol=1e-6)


def test_initial_values_follow_the_reference():
    config = default.get_config()
    model = make_model(config, Catalogue(999))
    params = init_params(model, {"text": 400}, seed=0)
    table = params["token_embedding"]["embedding"]
    assert float(jnp.abs(table).max()) <= 1000**-0.5 < float(jnp.abs(table).max()) * 1.01
    blocks = params["blocks"]
    kernels = blocks["ffn"]["up"]["kernel"]
    assert kernels.shape == (5, 2, 128, 256)
    assert len(np.unique(kernels[..., 0, 0])) == 10  # each block has its own
    block = jax.tree.map(lambda x: x[3, 1], blocks)
    assert float(block["ffn_residual_scale"]) == pytest.approx(1e-8)
    assert (block["attention"]["query"]["bias"] == np.float32(0.1)).all()
    kernel = block["ffn"]["up"]["kernel"]
    assert float(kernel.std()) == pytest.approx((2 / (128 + 256)) ** 0.5, rel=0.03)
    projection = params["content_projection"]
    assert float(jnp.abs(projection["kernel"]).max()) == pytest.approx(400**-0.5, rel=0.01)
    assert float(jnp.abs(projection["bias"]).max()) <= 400**-0.5


def test_dropout_follows_its_key():
    model, params = make()
    sequence = jnp.array([[1, 2, 3, 4, 5, 6]])

    def fused(seed):
        key = jax.random.key(seed)
        return encode(model, params, sequence, FEATURES, dropout_key=key).fused

    np.testing.assert_array_equal(fused(0), fused(0))
    assert np.abs(fused(0) - fused(1)).max() > 1e-3


def test_items_without_content_share_a_learnt_vector():
    features = FEATURES.at[jnp.array([3, 5])].set(0.0)
    sequence = jnp.array([[1, 3, 2, 5, 3, 4]])
    model, params = make()
    learnt = params["content_projection"]["no_content"]
    states = encode(model, params, sequence, features).content.input_embedding
    for place in (1, 3, 4):
        np.testing.assert_array_equal(states[0, place], learnt)
    assert not np.isclose(states[0, 0], learnt).any()
    grads = jax.grad(lambda p: encode(model, p, sequence, features).content.input_embedding.sum())(
        params
    )["content_projection"]
    np.testing.assert_allclose(grads["no_content"], 3.0)
    np.testing.assert_allclose(grads["bias"], 3.0)
    # Without it they are what the projection makes of zeros.
    model, params = make(no_content_vector=False)
    assert "no_content" not in params["content_projection"]
    states = encode(model, params, sequence, features).content.input_embedding
    np.testing.assert_allclose(states[0, 1], params["content_projection"]["bias"])
