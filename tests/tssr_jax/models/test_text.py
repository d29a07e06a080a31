"""A trained text encoder: each distinct item once gives what every position by itself would."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from data_pipeline import text_inputs
from data_pipeline.distinct import DistinctItems
from data_pipeline.text_features import TextEncoder, text_features
from data_pipeline.text_inputs import prepare_text
from tests.raw_data import WORDS, write_text_model
from tssr_jax.catalogue import Catalogue
from tssr_jax.experiment import make_model
from tssr_jax.losses.total import loss_terms, term_weights, total_loss
from tssr_jax.models.content.bert import Bert, load_params
from tssr_jax.models.content.text import NO_ITEM
from tssr_jax.models.tssr import encode
from tssr_jax.optimizer import make_optimizer
from tssr_jax.parallel import ROWS, WHOLE, Devices
from tssr_jax.train_state import init_params

NUM_ITEMS = 20
TEXTS = [" ".join(WORDS[(i + j) % 10] for j in range(1 + i % 5)) for i in range(NUM_ITEMS)]
TEXTS[6] = ""  # item 7


@pytest.fixture(name="content")
def fixture_content(tmp_path):
    content = default.get_config().content
    content.text_model_dir = str(write_text_model(tmp_path / "model"))
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
    ids = jnp.asarray(text.encoder.shares(NUM_ITEMS + 1, num_devices=1))
    vectors = text.encoder.catalogue(text.params, inputs, ids, None)
    expected = text_features(TEXTS, content, str(tmp_path)).table
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert not expected[7].any() and not vectors[0].any()
    layers = {name for name in text.params if name.startswith("layer_")}
    assert layers == ({"layer_1"} if trained_layers == 1 else {"layer_0", "layer_1"})
    assert ("word_embedding" in text.params) == (trained_layers == -1)


def test_pooling_by_hand(content, tmp_path):
    pooler_weights(tmp_path / "model")
    encoder = TextEncoder(tmp_path / "model", 8, "pooler")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 16)), jnp.float32)
    mask = jnp.array([[True, True, False], [True, True, True]])

    def pool(how):
        return encoder.bert.apply({"params": encoder.params}, x, mask, how, method=Bert.pool)

    np.testing.assert_allclose(pool("mean")[0], (x[0, 0] + x[0, 1]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(pool("cls"), x[:, 0])
    dense = load_params(tmp_path / "model", encoder.bert)["pooler_dense"]
    expected = np.tanh(x[:, 0] @ dense["kernel"] + dense["bias"])
    np.testing.assert_allclose(pool("pooler"), expected, atol=1e-5)


def test_frozen_layers_run_once(content, tmp_path, monkeypatch):
    content.trained_layers = 1
    first = prepare_text(TEXTS, content, str(tmp_path))
    monkeypatch.setattr(text_inputs, "track", lambda *_, **__: pytest.fail("ran again"))
    second = prepare_text(TEXTS, content, str(tmp_path))
    np.testing.assert_array_equal(first.inputs.tokens, second.inputs.tokens)


def test_distinct_items_are_dealt_out_by_bucket():
    buckets = np.array([-1, 0, 0, 0, 0, 0, 1, 1, -1])
    find = DistinctItems(buckets, num_buckets=2, unit=2)
    short, long = find(np.array([[0, 5, 1], [7, 3, 1], [8, 8, 2]], np.int32), num_devices=2)
    assert short.numpy().tolist() == [[1, 3, NO_ITEM, NO_ITEM], [2, 5, NO_ITEM, NO_ITEM]]
    assert long.numpy().tolist() == [[7, NO_ITEM], [NO_ITEM, NO_ITEM]]


def small_config():
    config = default.get_config()
    config.model.update(d_model=8, d_ffn=8, num_heads=2, num_cross_layers=1, max_length=4)
    config.model.dropout_rate = 0.0
    return config


def as_arrays(batch):
    return {name: jnp.asarray(batch[name]) for name in ("item_sequence", "labels", "row_mask")}


def batch_of(rows):
    rng = np.random.default_rng(0)
    windows = rng.integers(1, NUM_ITEMS + 1, (rows, 5)).astype(np.int32)
    windows[: rows // 2, :2] = 0
    windows[0, 3] = 7  # an item without text
    row_mask = np.ones(rows, bool)
    return {"item_sequence": windows[:, :-1], "labels": windows[:, 1:], "row_mask": row_mask}


@pytest.mark.parametrize("way", [("shard_map", 1), ("pmap", 2), ("shard_map", 4)], ids=str)
def test_gradients_are_those_of_encoding_every_position(content, tmp_path, way):
    config, batch = small_config(), batch_of(8)
    text = prepare_text(TEXTS, content, str(tmp_path))
    inputs = jax.tree.map(jnp.asarray, text.inputs)
    devices = Devices(*way)
    model = make_model(config, Catalogue(NUM_ITEMS), devices.rows_axis)
    alone = make_model(config, Catalogue(NUM_ITEMS))
    params = init_params(alone, 16, seed=0) | {"text_encoder": text.params}
    weights = term_weights(config)

    def naive(params):
        """Encodes the text of each position; the last one of an item stands for all of them."""
        sequence = jnp.asarray(batch["item_sequence"])
        flat = sequence.reshape(-1)
        lengths = inputs.lengths[flat]
        mask = jnp.arange(inputs.tokens.shape[1]) < lengths[:, None]
        variables = {"params": params["text_encoder"]}
        states = text.encoder.bert.apply(variables, inputs.tokens[flat], mask)
        mean = jnp.sum(states * mask[..., None], 1) / jnp.maximum(mask.sum(1), 1)[:, None]
        norm = jnp.linalg.norm(mean + (lengths == 0)[:, None], axis=1, keepdims=True)
        vectors = jnp.where(lengths[:, None] > 0, mean / norm, 0.0)
        # Each position's own vector, by a catalogue in which it is an item of its own.
        projected = model_states(params, vectors.reshape(*sequence.shape, -1), sequence)
        terms = loss_terms(alone, params, projected, as_arrays(batch), config)
        return total_loss(terms, weights)

    def model_states(params, vectors, sequence):
        def mean_of_equals(vectors):
            # The forward pass may read any position of an item: all are the same.
            same = (sequence.reshape(-1)[:, None] == jnp.arange(NUM_ITEMS + 1)).astype(jnp.float32)
            flat = vectors.reshape(-1, vectors.shape[-1])
            return same.T @ flat / jnp.maximum(same.sum(0), 1.0)[:, None]

        return encode(alone, params, sequence, mean_of_equals(vectors).at[0].set(0.0))

    value, expected = jax.jit(jax.value_and_grad(naive))(params)
    found = DistinctItems(text.bucket_of_item, len(text.encoder.buckets), 2)(
        batch["item_sequence"], devices.num_devices
    )
    batch["distinct"] = tuple(ids.numpy().reshape(-1) for ids in found)

    def body(params, batch, inputs):
        def share(params):
            features = text.encoder.distinct_features(
                params["text_encoder"], inputs, batch["distinct"], model.rows_axis
            )
            outputs = encode(model, params, batch["item_sequence"], features)
            terms = loss_terms(model, params, outputs, batch, config)
            return total_loss(terms, weights, model.rows_axis)

        shares, grads = jax.value_and_grad(share)(params)
        if model.rows_axis is None:
            return shares, grads
        return jax.lax.psum((shares, grads), model.rows_axis)

    run = devices.run(body, inputs=(WHOLE, ROWS, WHOLE))
    total, grads = run(devices.place(params), batch, devices.place(inputs))
    np.testing.assert_allclose(total, value, rtol=1e-5)

    def close(path, grad, wanted):
        scale = max(float(np.abs(wanted).max()), 1e-2)
        np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-5 * scale, err_msg=str(path))

    jax.tree_util.tree_map_with_path(close, grads, expected)
    assert float(np.abs(grads["text_encoder"]["word_embedding"]["embedding"]).max()) > 0


def test_layers_have_step_sizes_of_their_own():
    config = default.get_config()
    config.content.update(learning_rate=1e-4, layer_decay=0.5, train_from_step=1)
    optimizer = make_optimizer(config.optimizer, content=config.content)
    one = {"kernel": jnp.ones(2)}
    encoder = {"layer_0": one, "layer_1": one, "word_embedding": one, "pooler_dense": one}
    params = {"output": one, "text_encoder": encoder}
    state = optimizer.init(params)
    for step in range(2):
        updates, state = optimizer.update(params, state, params)
        own = updates["text_encoder"]
        sizes = [
            -float(tree["kernel"][0])
            for tree in (
                updates["output"], own["pooler_dense"], own["layer_1"], own["layer_0"],
                own["word_embedding"],
            )
        ]  # fmt: skip
        waiting = [1e-3, 0, 0, 0, 0]
        trained = [1e-3, 1e-4, 1e-4, 5e-5, 2.5e-5]
        np.testing.assert_allclose(sizes, trained if step else waiting, rtol=1e-4)
