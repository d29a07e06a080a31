"""A trained text encoder: each distinct item once gives what every position by itself would."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import distinct_gradients
from tests.support.distinct_gradients import NUM_ITEMS
from tests.support.raw_data import WORDS, write_text_model
from tssr_jax.config import default
from tssr_jax.content import text_inputs
from tssr_jax.content.bert import Bert, load_params
from tssr_jax.content.text_features import TextEncoder, text_features
from tssr_jax.content.text_inputs import packed_texts, prepare_text
from tssr_jax.content.trained import NO_ITEM, scatter
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.training.optimizer import EncoderSteps, make_optimizer

TEXTS = [" ".join(WORDS[(i + j) % 10] for j in range(1 + i % 5)) for i in range(NUM_ITEMS)]
TEXTS[6] = ""  # item 7


@pytest.fixture(name="content")
def fixture_content(tmp_path):
    content = default.get_config().content.text
    content.model_dir = str(write_text_model(tmp_path / "model"))
    content.update(max_tokens=8, trained_layers=-1, micro_batch=2)
    return content


def pooler_weights(folder):
    """Adds the pooler that a BERT may have."""
    from safetensors.numpy import load_file, save_file  # noqa: PLC0415

    path = folder / "model.safetensors"
    tensors = load_file(path)
    rng = np.random.default_rng(5)
    tensors["pooler.dense.weight"] = rng.normal(size=(16, 16)).astype(np.float32)
    tensors["pooler.dense.bias"] = rng.normal(size=16).astype(np.float32)
    save_file(tensors, path)


@pytest.mark.parametrize("trained_layers", [-1, 1, 2])
@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_before_training_vectors_are_the_frozen_features(
    content, tmp_path, trained_layers, pooling
):
    if pooling == "pooler":
        pooler_weights(tmp_path / "model")
    content.update(trained_layers=trained_layers, pooling=pooling)
    text = prepare_text(TEXTS, content, str(tmp_path))
    inputs = jax.tree.map(jnp.asarray, text.inputs)
    (part,) = text.catalogue_parts(num_devices=1, mine=slice(None))
    features = text.encoder.distinct_features(text.params, inputs, part, None)
    vectors = scatter(jnp.zeros((NUM_ITEMS + 1, 16)), features)
    expected = text_features(TEXTS, content, str(tmp_path)).table
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert not expected[7].any() and not vectors[0].any()
    layers = {name for name in text.params if name.startswith("layer_")}
    assert layers == ({"layer_1"} if trained_layers == 1 else {"layer_0", "layer_1"})
    assert ("word_embedding" in text.params) == (trained_layers == -1)


def test_pooling_by_hand(content, tmp_path):
    """Two texts in one row, the second of two tokens, and one text in another row."""
    pooler_weights(tmp_path / "model")
    encoder = TextEncoder(tmp_path / "model", 8, "pooler")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 16)), jnp.float32)
    belongs = jnp.array([[[1, 0, 0, 0], [0, 1, 1, 0]], [[0, 0, 0, 0], [1, 1, 1, 1]]], bool)

    def pool(how):
        variables = {"params": encoder.params}
        return encoder.bert.apply(variables, x, belongs, how, method=Bert.pool)

    np.testing.assert_allclose(pool("mean")[0, 0], x[0, 0], rtol=1e-6)
    np.testing.assert_allclose(pool("mean")[0, 1], (x[0, 1] + x[0, 2]) / 2, rtol=1e-6)
    np.testing.assert_allclose(pool("mean")[1, 1], x[1].mean(0), rtol=1e-5)
    first = jnp.stack([x[0, 0], x[0, 1], x[1, 0]])
    chosen = (jnp.array([0, 0, 1]), jnp.array([0, 1, 1]))
    np.testing.assert_array_equal(pool("cls")[chosen], first)
    dense = load_params(tmp_path / "model", encoder.bert)["pooler_dense"]
    expected = np.tanh(first @ dense["kernel"] + dense["bias"])
    np.testing.assert_allclose(pool("pooler")[chosen], expected, atol=1e-5)


def test_frozen_layers_run_once(content, tmp_path, monkeypatch):
    content.trained_layers = 1
    first = prepare_text(TEXTS, content, str(tmp_path))
    monkeypatch.setattr(text_inputs, "track", lambda *_, **__: pytest.fail("ran again"))
    second = prepare_text(TEXTS, content, str(tmp_path))
    np.testing.assert_array_equal(first.inputs.tokens, second.inputs.tokens)


def test_texts_share_rows_by_hand():
    """The longest that is left, then the shortest that fit."""
    items, lengths = np.array([1, 2, 3, 4, 5, 6]), np.array([2, 7, 3, 5, 2, 8])
    rows = packed_texts(items, lengths, row_length=10, texts=3)
    _ = NO_ITEM
    assert rows.tolist() == [[6, 1, _], [2, 5, _], [4, 3, _]]
    rows = packed_texts(items, lengths, row_length=27, texts=3)
    assert rows.tolist() == [[6, 1, 5], [2, 3, 4]]
    assert packed_texts(items[:0], lengths[:0], 10, 3).shape == (0, 3)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=60), st.integers(1, 7))
def test_rows_hold_each_text_once_and_are_half_full(lengths, texts):
    lengths = np.array(lengths)
    rows = packed_texts(np.arange(len(lengths)), lengths, row_length=12, texts=texts)
    there = rows != NO_ITEM
    assert sorted(rows[there]) == list(range(len(lengths)))
    used = np.where(there, lengths[np.where(there, rows, 0)], 0).sum(axis=1)
    assert used.max() <= 12
    assert all((used[:-1] > 6) | (there[:-1].sum(axis=1) == texts))


def test_a_batch_has_rows_for_any_items_and_deals_them_round_robin(content, tmp_path):
    text = prepare_text(TEXTS, content, str(tmp_path))
    items = tf.constant([[0, 5, 1], [7, 3, 1], [8, 8, 2]], tf.int32)  # item 7 has no text
    both = text.part(items, 2, slice(None)).numpy()
    first, second = (text.part(items, 2, slice(i, i + 1)).numpy() for i in range(2))
    np.testing.assert_array_equal(both, np.concatenate([first, second]))
    assert sorted(both[both != NO_ITEM]) == [1, 2, 3, 5, 8]
    rows = packed_texts(
        np.array([1, 2, 3, 5, 8]), text.inputs.lengths[[1, 2, 3, 5, 8]],
        text.encoder.row_length, both.shape[1],
    )  # fmt: skip
    np.testing.assert_array_equal(first[: len(rows[::2])], rows[::2])
    np.testing.assert_array_equal(second[: len(rows[1::2])], rows[1::2])
    longest = np.argsort(text.inputs.lengths)[-9:].astype(np.int32).reshape(3, 3)
    assert text.part(tf.constant(longest), 2, slice(None)).shape == both.shape


def naive(text):
    """The mean of the last states of each position's tokens, of length 1."""
    inputs = jax.tree.map(jnp.asarray, text.inputs)

    def vectors_of(params, items):
        lengths = inputs.lengths[items]
        mask = jnp.arange(inputs.tokens.shape[1]) < lengths[:, None]
        weights = text.encoder.merged(params, inputs.base)
        states = text.encoder.bert.apply({"params": weights}, inputs.tokens[items], mask)
        mean = jnp.sum(states * mask[..., None], 1) / jnp.maximum(mask.sum(1), 1)[:, None]
        norm = jnp.linalg.norm(mean + (lengths == 0)[:, None], axis=1, keepdims=True)
        return jnp.where(lengths[:, None] > 0, mean / norm, 0.0)

    return vectors_of


@pytest.mark.parametrize("way", [("shard_map", 1), ("pmap", 2), ("shard_map", 4)], ids=str)
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_gradients_are_those_of_encoding_every_position(content, tmp_path, way, lora_rank):
    content.update(lora_rank=lora_rank, micro_batch=1)
    text = prepare_text(TEXTS, content, str(tmp_path))
    items = np.flatnonzero(text.inputs.lengths)
    lengths = text.inputs.lengths[items]
    assert len(packed_texts(items, lengths, text.encoder.row_length, 99)) > 2  # further rows
    if lora_rank:  # B begins as zeros, so that A would have no gradient
        rng = np.random.default_rng(0)
        moved = jax.tree.map(lambda x: 0.1 * rng.normal(size=x.shape) + x, text.params)
        text = text._replace(params=jax.tree.map(np.float32, moved))
    config, batch = distinct_gradients.small_config(), distinct_gradients.batch_of(8)
    case = (text, "text", config, batch)
    value, expected = distinct_gradients.of_every_position(*case, naive(text))
    total, grads = distinct_gradients.of_distinct_items(*case, way)
    np.testing.assert_allclose(total, value, rtol=1e-5)
    distinct_gradients.assert_equal(grads, expected)
    moving = grads["text_encoder"]["layer_0"]["query"]
    assert all(float(np.abs(x).max()) > 0 for x in moving.values())
    assert ("word_embedding" in grads["text_encoder"]) == (lora_rank == 0)


@pytest.mark.parametrize("trained_layers", [-1, 1])
def test_adapters_begin_as_nothing_and_add_low_rank_products(content, tmp_path, trained_layers):
    content.update(trained_layers=trained_layers, lora_rank=3)
    text = prepare_text(TEXTS, content, str(tmp_path))
    whole = TextEncoder(tmp_path / "model", 8).params
    merged = text.encoder.merged(text.params, text.inputs.base)
    for name, layer in merged.items():
        jax.tree.map(np.testing.assert_array_equal, layer, whole[name])
    layers = {"layer_1"} if trained_layers == 1 else {"layer_0", "layer_1"}
    assert text.params.keys() == layers
    for modules in text.params.values():
        assert modules.keys() == {"query", "key", "value", "attention_output"}
        assert {x.shape for x in jax.tree.leaves(modules)} == {(16, 3), (3, 16)}
    changed = jax.tree.map(lambda x: x + 0.5, text.params)
    a, b = (changed["layer_1"]["value"][name] for name in "ab")
    kernel = text.encoder.merged(changed, text.inputs.base)["layer_1"]["value"]["kernel"]
    expected = whole["layer_1"]["value"]["kernel"] + 16.0 / 3 * (a @ b)
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)


def test_layers_have_step_sizes_of_their_own():
    config = default.get_config().optimizer
    depths = {"layer_0": 1, "layer_1": 0, "word_embedding": 2, "pooler_dense": 0}
    steps = {"text_encoder": EncoderSteps(1e-4, depth=depths.get)}
    optimizer = make_optimizer(config, encoders=steps)
    one = {"kernel": jnp.ones(2)}
    params = {"output": one, "text_encoder": dict.fromkeys(depths, one)}
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(params, state, params)
        own = updates["text_encoder"]
        trees = (updates["output"], *(own[name] for name in depths))
        sizes = [-float(tree["kernel"][0]) for tree in trees]
        np.testing.assert_allclose(sizes, [1e-3, 9e-5, 1e-4, 8.1e-5, 1e-4], rtol=1e-4)


def test_depths_of_a_bert(content, tmp_path):
    text = prepare_text(TEXTS, content, str(tmp_path))
    depths = {name: text.encoder.depth(name) for name in text.params}
    assert depths == {
        "layer_0": 1, "layer_1": 0, "word_embedding": 2, "position_embedding": 2,
        "token_type_embedding": 2, "embedding_norm": 2,
    }  # fmt: skip
