"""Further negatives are the same on any number of devices."""

import jax
import numpy as np
import pytest

from tssr_jax.config import default
from tssr_jax.models.content import CONTENT_LAYOUT, Content
from tssr_jax.models.init import init_params, make_model
from tssr_jax.parallel import sharding
from tssr_jax.parallel.devices import CLASSES, ROWS, Devices
from tssr_jax.training.optimizer import make_optimizer
from tssr_jax.training.state import create_train_state
from tssr_jax.training.step import make_train_step

GROUPS, QUERIES, WIDTH, EXTRA = 2, 5, 3, 4


@pytest.mark.parametrize(
    ("fields", "way"),
    [
        ({"loss.hard_negatives": "content"}, ("pmap", 4)),
        ({"loss.hard_negatives": "embedding"}, ("shard_map", 8)),
        ({"loss.queue_size": 12, "optimizer.ema_decay": 0.9}, ("shard_map", 4)),
    ],
    ids=str,
)
def test_steps_are_the_same_on_any_number_of_devices(fields, way):
    config = default.get_config()
    config.model.update(d_model=8, d_ffn=8, num_heads=2, num_cross_layers=1, max_length=4)
    config.update_from_flattened_dict({"loss.num_hard_negatives": 9, **fields})
    rng = np.random.default_rng(0)
    features = {"text": rng.normal(size=(31, 6)).astype(np.float32)}
    windows = rng.integers(1, 31, (2, 8, 5)).astype(np.int32)
    windows[0, 0, :2] = 0

    def run(config, devices):
        model = make_model(config, devices.catalogue(30), devices.rows_axis)
        optimizer = make_optimizer(config.optimizer, model.classes)

        def start():
            return create_train_state(init_params(model, {"text": 6}, 0), optimizer, config)

        layout = sharding.layout(jax.eval_shape(start))
        step = devices.run(
            make_train_step(model, optimizer, config),
            inputs=(layout, ROWS, CONTENT_LAYOUT),
            output=layout,
        )
        state, content = devices.build(start, layout), Content(devices.place(features, CLASSES))
        for own in windows:
            batch = {
                "item_sequence": own[:, :-1],
                "labels": own[:, 1:],
                "row_mask": np.arange(8) != 3,
            }
            state = step(state, batch, content)
        return state

    alone = run(config, Devices("pmap", 1))
    several = run(config, Devices(*way))
    for name, term in alone.loss_sums.items():
        np.testing.assert_allclose(several.loss_sums[name].sum, term.sum, rtol=1e-4)
    plain = default.get_config()
    plain.model = config.model
    without = run(plain, Devices("pmap", 1)).loss_sums
    touched = "user" if "loss.queue_size" in fields else "item"
    for name, term in alone.loss_sums.items():
        if name.startswith(touched):  # more to compete with: a larger loss
            assert term.sum > without[name].sum + 0.1
    if alone.users is not None:
        # Eight new ones and four old ones, of each batch one row without a user.
        assert alone.users.filled.sum() == 10 and np.abs(alone.users.id).max() > 0
