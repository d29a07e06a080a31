"""Our side of every case: the program's own input pipeline, step and ranking.

python -m benchmarks.ours '{"kind": "peak"}' is the measured peak of a 2,048^3 product.
"""

import os
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarks.cases import FEATURE_DIM
from benchmarks.worker import Repeat, serve, steps_in_a_row
from configs import csv, default
from data_pipeline.input_pipeline import EvalBatches, make_train_batches
from data_pipeline.store import SequenceStore
from data_pipeline.tensorflow_cpu import tf
from tssr_jax import placement
from tssr_jax.evaluate import make_eval_step
from tssr_jax.experiment import build_experiment, make_model
from tssr_jax.models.tssr import TSSR
from tssr_jax.optimizer import make_optimizer
from tssr_jax.parallel import CLASSES, ROWS, Devices
from tssr_jax.train_state import create_train_state, init_params, make_train_step

PEAK_SIZE = 2_048


def configure(case: dict[str, Any]) -> ml_collections.ConfigDict:
    """The configuration of a case."""
    config = csv.get_config(case["folder"]) if case["folder"] else default.get_config()
    config.model.update(
        streams=tuple(case["streams"]),
        d_model=case["d_model"],
        d_ffn=case["d_ffn"],
        num_heads=case["num_heads"],
        num_unimodal_layers=case["num_unimodal"],
        num_cross_layers=case["num_cross"],
        max_length=case["length"],
    )
    config.train.batch_size = config.evaluate.batch_size = case["batch"]
    config.train.packing = bool(case["folder"])
    if case["last_label_only"]:
        config.train.windows = "prefixes"
    config.num_devices = 1
    return config


def full_windows(case: dict[str, Any]) -> SequenceStore:
    """Users whose training windows, or histories, are full: items drawn uniformly."""
    users, length = case["users"] or 20 * case["batch"], case["length"] + 3
    items = np.random.default_rng(0).integers(1, case["num_items"] + 1, users * length, np.int32)
    offsets = np.arange(users + 1, dtype=np.int64) * length
    return SequenceStore.in_memory(tf.constant(items), tf.constant(offsets))


def features(case: dict[str, Any], devices: Devices) -> dict[str, jax.Array]:
    """Made-up content features."""
    if "content" not in case["streams"]:
        return {}
    shape = (case["num_items"] + 1, FEATURE_DIM)
    table = np.random.default_rng(1).standard_normal(shape, np.float32)
    return {"text": devices.place(table, CLASSES)}


class Training:
    """Steps of training, each with the wait for its batch."""

    def __init__(self, case: dict[str, Any]):
        config = configure(case)
        if case["folder"]:
            experiment = build_experiment(config)
            devices, model, store = experiment.devices, experiment.model, experiment.sequences
            self._content: dict[str, Any] = experiment.content
        else:
            devices = Devices(config.parallel, config.num_devices)
            model = make_model(config, devices.catalogue(case["num_items"]), devices.rows_axis)
            store, self._content = full_windows(case), features(case, devices)
        widths = {name: table.shape[1] for name, table in self._content.items()}
        optimizer = make_optimizer(config.optimizer, model.catalogue)

        def start() -> Any:
            return create_train_state(init_params(model, widths, config.seed), optimizer, config)

        layout = placement.layout(jax.eval_shape(start))
        self._state = devices.build(start, layout)
        self._step = devices.run(
            make_train_step(model, optimizer, config),
            inputs=(layout, ROWS, CLASSES),
            output=layout,
            donate=(0,),
        )
        self._batches: Iterator[Any] = devices.ahead(make_train_batches(store, config).iterate(0))

    def __call__(self) -> dict[str, float]:
        """One step; returns the seconds of waiting for its batch."""
        begin = time.perf_counter()
        batch = next(self._batches)
        waited = time.perf_counter() - begin
        self._state = self._step(self._state, batch, self._content)
        jax.block_until_ready(self._state)
        return {"waited": waited}


class Ranking:
    """Ranks of all users of a made-up data set."""

    def __init__(self, case: dict[str, Any]):
        config = configure(case)
        devices = Devices(config.parallel, config.num_devices)
        model: TSSR = make_model(config, devices.catalogue(case["num_items"]), devices.rows_axis)
        self._content = features(case, devices)
        widths = {name: table.shape[1] for name, table in self._content.items()}
        params = jax.eval_shape(lambda: init_params(model, widths, config.seed))
        layout = placement.layout(params)
        self._params = devices.build(lambda: init_params(model, widths, config.seed), layout)
        self._step = devices.run(make_eval_step(model), inputs=(layout, ROWS, CLASSES))
        self._batches = EvalBatches(
            full_windows(case), "test", batch_size=case["batch"], max_length=case["length"],
            full_history=True, exclude_padding_class=True,
        )  # fmt: skip

    def __call__(self) -> None:
        """Ranks everybody once."""
        for batch in self._batches:
            np.asarray(self._step(self._params, batch, self._content))


def peak() -> Repeat:
    """A large product, the most that this machine multiplies."""
    matrix = jnp.ones((PEAK_SIZE, PEAK_SIZE))
    product = jax.jit(jnp.matmul)

    def multiply() -> None:
        jax.block_until_ready(product(matrix, matrix))

    return multiply


def prepare(case: dict[str, Any]) -> Repeat:
    """What one repeat of the case runs."""
    cache = os.environ.get("BENCH_COMPILED")
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
    if case["kind"] == "peak":
        return peak()
    if case["kind"] == "rank":
        return Ranking(case)
    return steps_in_a_row(Training(case), case["steps"])


if __name__ == "__main__":
    serve(prepare)
