"""A head that is tied to the item table, and to content, is cut over devices like these."""

import jax
import numpy as np
import optax
import pytest

from tests.support.small_batches import (
    NUM_ITEMS,
    assert_close,
    existing,
    fixture_features,  # noqa: F401
    small_config,
)
from tssr_jax.models.content import CONTENT_LAYOUT, Content
from tssr_jax.models.init import init_params, make_model
from tssr_jax.parallel import sharding
from tssr_jax.parallel.devices import CLASSES, ROWS, Devices
from tssr_jax.training.state import create_train_state
from tssr_jax.training.step import make_train_step


@pytest.mark.parametrize(
    "fields",
    [
        {"streams": ("id",)},
        {"streams": ("sum",)},
        {"mixing": "experts", "content_hidden": 4},
        {"mixing": "experts", "id_reads_content": True},
        {"id_reads_content": True},
    ],
    ids=str,
)
def test_a_tied_head_is_cut_with_the_table(fields, features):
    config = small_config()
    config.model.update(head="tied", **fields)
    windows = np.random.default_rng(0).integers(1, NUM_ITEMS + 1, (2, 8, 5)).astype(np.int32)
    known = np.arange(NUM_ITEMS + 1) % 7 != 3
    windows[~known[windows]] = 1
    reads = config.model.streams != ("id",)

    def run(devices):
        model = make_model(config, devices.catalogue(NUM_ITEMS), devices.rows_axis)
        optimizer = optax.sgd(0.1)
        tables = Content({"text": features}, known=known) if reads else Content()
        fill = model.classes.padded_classes - NUM_ITEMS - 1
        content = jax.tree.map(
            lambda x: devices.place(np.pad(x, ((0, fill), (0, 0))[: x.ndim]), CLASSES), tables
        )

        def start():
            widths = {"text": features.shape[1]} if reads else {}
            return create_train_state(init_params(model, widths, 0), optimizer, config)

        layout = sharding.layout(jax.eval_shape(start))
        step = devices.run(
            make_train_step(model, optimizer, config),
            inputs=(layout, ROWS, CONTENT_LAYOUT),
            output=layout,
        )
        state = devices.build(start, layout)
        for own in windows:
            rows = {
                "item_sequence": own[:, :-1],
                "labels": own[:, 1:],
                "row_mask": np.ones(8, bool),
            }
            state = step(state, rows, content)
        return state

    alone, cut = run(Devices("pmap", 1)), run(Devices("shard_map", 4, 2))
    for name, term in alone.loss_sums.items():
        np.testing.assert_allclose(cut.loss_sums[name].sum, term.sum, rtol=1e-5)
    assert_close(existing(cut.params), alone.params, 1e-5)
