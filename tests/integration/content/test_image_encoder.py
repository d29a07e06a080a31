"""A trained image encoder: each distinct picture once gives what every position would."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import distinct_gradients
from tests.support.distinct_gradients import NOTHING, NUM_ITEMS
from tests.support.raw_data import write_image_model, write_images
from tssr_jax.config import default
from tssr_jax.content import image_inputs
from tssr_jax.content.image_inputs import image_features, prepare_images
from tssr_jax.content.resnet import ResNet, normalise, pool
from tssr_jax.content.trained import NO_ITEM, scatter
from tssr_jax.errors import UserError

NAMES = [f"{i}.png" for i in range(NUM_ITEMS)]
NAMES[NOTHING - 1] = ""
# Channels of a tiny ResNet: two stages, 4 x 2 x 4.
WIDTH = 32


@pytest.fixture(name="folder", scope="module")
def fixture_folder(tmp_path_factory):
    """Pictures, weights, and what was decoded."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, [name for name in NAMES if name])
    write_image_model(folder / "model.safetensors")
    return folder


@pytest.fixture(name="settings")
def fixture_settings(folder):
    settings = default.get_config().content.image
    settings.update(model_file=str(folder / "model.safetensors"), trained_stages=-1, micro_batch=2)
    return settings


def prepared(folder, settings):
    return prepare_images(NAMES, str(folder), settings, str(folder / "cache"))


@pytest.mark.parametrize("trained_stages", [-1, 1, 2])
def test_before_training_vectors_are_the_frozen_features(folder, settings, trained_stages):
    settings.trained_stages = trained_stages
    images = prepared(folder, settings)
    table = jnp.zeros((NUM_ITEMS + 1, WIDTH))
    for part in images.catalogue_parts(1, slice(None)):
        features = images.encoder.distinct_features(images.params, (), part, None)
        table = scatter(table, features)
    frozen = image_features(NAMES, str(folder), settings, str(folder / "cache"))
    np.testing.assert_allclose(table, frozen.table, atol=1e-6)
    lengths = np.linalg.norm(frozen.table, axis=1)
    expected = [0.0 if item in {0, NOTHING} else 1.0 for item in range(NUM_ITEMS + 1)]
    np.testing.assert_allclose(lengths, expected, atol=1e-6)
    names = {"batch_stats", "stage_1"} | ({"stage_0"} if trained_stages != 1 else set())
    assert images.params.keys() == names | ({"stem"} if trained_stages == -1 else set())


def test_frozen_stages_run_once(folder, settings, monkeypatch):
    settings.trained_stages = 1
    first = prepared(folder, settings)
    monkeypatch.setattr(image_inputs, "_in_batches", lambda *_: pytest.fail("ran again"))
    second = prepared(folder, settings)
    items = first.store.items
    np.testing.assert_array_equal(first.store(items), second.store(items))
    assert first.store.shape == (56, 56, 16) and first.store.dtype == np.float32


def naive(images):
    """Each position's own picture through the encoder with its kept statistics."""
    store, config = images.store, images.encoder.config
    pixels = np.zeros((NUM_ITEMS + 1, *store.shape), store.dtype)
    pixels[store.items] = store(store.items)
    first = images.encoder.first_stage

    def vectors_of(params, items):
        params = dict(params)
        variables = {"batch_stats": jax.lax.stop_gradient(params.pop("batch_stats"))}
        x = jnp.asarray(pixels)[items]
        x = normalise(x) if first < 0 else x
        x = ResNet(config).apply(variables | {"params": params}, x, first, 2, method=ResNet.run)
        x = pool(x)
        there = (jnp.asarray(store.rows)[items] >= 0)[:, None]
        return jnp.where(there, x / jnp.linalg.norm(x, axis=1, keepdims=True), 0.0)

    return vectors_of


@pytest.mark.parametrize(
    ("way", "stages"), [(("shard_map", 1), 1), (("pmap", 2), -1), (("shard_map", 4), 1)], ids=str
)
def test_gradients_are_those_of_encoding_every_position(folder, settings, way, stages):
    settings.trained_stages = stages
    images = prepared(folder, settings)
    config, batch = distinct_gradients.small_config(), distinct_gradients.batch_of(8)
    config.content.modalities = ("image",)
    case = (images, "image", config, batch)
    value, expected = distinct_gradients.of_every_position(*case, naive(images))
    total, grads = distinct_gradients.of_distinct_items(*case, way)
    np.testing.assert_allclose(total, value, rtol=1e-5)
    distinct_gradients.assert_equal(grads, expected)
    kernel = grads["image_encoder"]["stage_1"]["block_0"]["conv2"]["kernel"]
    assert float(np.abs(kernel).max()) > 0


def test_a_batch_brings_its_pictures_dealt_out(folder, settings):
    images = prepared(folder, settings)
    items = np.array([[0, 5, 1, NOTHING], [3, 5, 1, 2]], np.int32)
    whole = images.part(items, 2, slice(None))
    ids = np.asarray(whole.ids)
    # Eight positions are at most eight pictures, two micro-batches of two on each device.
    assert ids.tolist() == [1, 3, 2, 5]
    np.testing.assert_array_equal(whole.rows, images.store(ids))
    second = images.part(items, 2, slice(1, 2))
    assert np.asarray(second.ids).tolist() == [2, 5]
    np.testing.assert_array_equal(second.rows, images.store(ids)[2:])
    few = images.part(np.array([[0, 9, 9, 9, 9, 9, 9, 9]], np.int32), 2, slice(None))
    assert np.asarray(few.ids).tolist() == [9, NO_ITEM, NO_ITEM, NO_ITEM]
    assert not np.asarray(few.rows)[1:].any()


def test_more_stages_than_there_are_and_no_weights(folder, settings):
    settings.trained_stages = 3
    with pytest.raises(UserError, match=r"trained_stages is 3; the encoder in .* has 2 stages"):
        prepared(folder, settings)
    settings.model_file = ""
    with pytest.raises(UserError, match=r"image.model_file=FILE"):
        prepared(folder, settings)
    settings.model_file = str(folder / "nothing.pth")
    with pytest.raises(UserError, match="there is no file"):
        image_features(NAMES, str(folder), settings, str(folder / "cache"))
