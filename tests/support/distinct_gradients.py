"""A loss and its gradients by encoding each position, and by encoding each distinct item."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.model_losses import loss_terms, term_weights
from tssr_jax.config import default
from tssr_jax.content.trained import parameters_name
from tssr_jax.losses.objective import total_loss
from tssr_jax.models.apply import encode
from tssr_jax.models.init import init_params, make_model
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.devices import ROWS, WHOLE, Devices

NUM_ITEMS = 20
NOTHING = 7  # an item without content


def small_config():
    config = default.get_config()
    config.model.update(d_model=8, d_ffn=8, num_heads=2, num_cross_layers=1, max_length=4)
    config.model.dropout_rate = 0.0
    return config


def batch_of(rows):
    rng = np.random.default_rng(0)
    windows = rng.integers(1, NUM_ITEMS + 1, (rows, 5)).astype(np.int32)
    windows[: rows // 2, :2] = 0
    windows[0, 3] = NOTHING
    row_mask = np.ones(rows, bool)
    return {"item_sequence": windows[:, :-1], "labels": windows[:, 1:], "row_mask": row_mask}


def initial(prepared, modality, config):
    model = make_model(config, Catalogue(NUM_ITEMS))
    params = init_params(model, {modality: prepared.encoder.width}, seed=0)
    return params | {parameters_name(modality): jax.tree.map(jnp.asarray, prepared.params)}


def of_every_position(prepared, modality, config, batch, vectors_of):
    """(loss, gradients); `vectors_of(encoder_params, items)` encodes each of int [positions]."""
    model, weights = make_model(config, Catalogue(NUM_ITEMS)), term_weights(config)
    batch = jax.tree.map(jnp.asarray, batch)
    sequence = batch["item_sequence"]
    flat = sequence.reshape(-1)

    def total(params):
        vectors = vectors_of(params[parameters_name(modality)], flat)
        # The forward pass may read any position of an item: all are the same.
        same = (flat[:, None] == jnp.arange(NUM_ITEMS + 1)).astype(jnp.float32)
        table = same.T @ vectors / jnp.maximum(same.sum(0), 1.0)[:, None]
        outputs = encode(model, params, sequence, {modality: table.at[0].set(0.0)})
        return total_loss(loss_terms(model, params, outputs, batch, config), weights)

    return jax.jit(jax.value_and_grad(total))(initial(prepared, modality, config))


def of_distinct_items(prepared, modality, config, batch, way):
    """(loss, gradients) on devices, as the train step takes them."""
    devices = Devices(*way)
    model = make_model(config, Catalogue(NUM_ITEMS), devices.rows_axis)
    weights, name = term_weights(config), parameters_name(modality)
    part = prepared.part(batch["item_sequence"], devices.num_devices, slice(None))
    batch = {**batch, "distinct": jax.tree.map(np.asarray, part)}

    def body(params, batch, inputs):
        def share(params):
            features = prepared.encoder.distinct_features(
                params[name], inputs, batch["distinct"], model.rows_axis
            )
            outputs = encode(model, params, batch["item_sequence"], {modality: features})
            terms = loss_terms(model, params, outputs, batch, config)
            return total_loss(terms, weights, model.rows_axis)

        value, grads = jax.value_and_grad(share)(params)
        if model.rows_axis is not None:
            value, grads = jax.lax.psum((value, grads), model.rows_axis)
        return value, grads

    run = devices.run(body, inputs=(WHOLE, ROWS, WHOLE))
    params = devices.place(initial(prepared, modality, config))
    return run(params, batch, devices.place(prepared.inputs))


def assert_equal(found, expected):
    """Within 1e-5 of each array's largest value."""

    def close(path, grad, wanted):
        scale = max(float(np.abs(wanted).max()), 1e-2)
        np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-5 * scale, err_msg=str(path))

    jax.tree_util.tree_map_with_path(close, found, expected)
