"""A batch with short and empty rows, features, and a model placed on any devices."""

import jax
import numpy as np
import pytest

from tssr_jax.config import default
from tssr_jax.models.init import make_model
from tssr_jax.parallel import sharding
from tssr_jax.parallel.devices import CLASSES

NUM_ITEMS, ROWS_OF_BATCH, LENGTH = 20, 24, 5


def small_config(dropout_rate=0.0, negatives="all_gather"):
    config = default.get_config()
    config.model.update(d_model=8, d_ffn=8, num_heads=2, num_cross_layers=1, max_length=LENGTH)
    config.model.dropout_rate = dropout_rate
    config.loss.update(lambda_user=0.7, lambda_item=1.3, negatives=negatives)
    return config


@pytest.fixture(name="batch", scope="module")
def fixture_batch():
    """Few items, so that rows share targets; the last rows are short, or empty."""
    rng = np.random.default_rng(0)
    windows = rng.integers(1, NUM_ITEMS + 1, size=(ROWS_OF_BATCH, LENGTH + 1)).astype(np.int32)
    lengths = np.linspace(LENGTH + 1, 0, ROWS_OF_BATCH).round()
    windows[np.arange(LENGTH, -1, -1) >= lengths[:, None]] = 0
    row_mask = lengths > 1
    windows[~row_mask] = 0
    return {"item_sequence": windows[:, :-1], "labels": windows[:, 1:], "row_mask": row_mask}


@pytest.fixture(name="features", scope="module")
def fixture_features():
    return np.random.default_rng(1).normal(size=(NUM_ITEMS + 1, 6)).astype(np.float32)


def on(devices, config, params, features):
    """The model of the devices, and parameters and features placed on them."""
    model = make_model(config, devices.catalogue(NUM_ITEMS), devices.rows_axis)
    params = sharding.pad_classes(params, model.classes)
    features = np.pad(features, ((0, model.classes.padded_classes - NUM_ITEMS - 1), (0, 0)))
    return (
        model,
        devices.place(params, sharding.layout(params)),
        devices.place(features, CLASSES),
    )


def existing(tree):
    """Without the classes that only fill up the last shard, whose values must be zero."""

    def cut(path, x):
        dimension = sharding.class_dimension(sharding.path_names(path))
        if dimension is None:
            return x
        kept, rest = np.split(np.asarray(x), [NUM_ITEMS + 1], axis=dimension)
        assert not rest.any()
        return kept

    return jax.tree_util.tree_map_with_path(cut, tree)


def assert_close(tree, expected, tolerance):
    """Within the tolerance, relative to the largest value of each array."""

    def check(path, value, wanted):
        # The key biases, and a bias that all classes share, have no gradient but rounding.
        scale = max(np.abs(wanted).max(), 3e-2)
        np.testing.assert_allclose(
            value, wanted, rtol=tolerance, atol=tolerance * scale, err_msg=str(path)
        )

    jax.tree_util.tree_map_with_path(check, tree, expected)
