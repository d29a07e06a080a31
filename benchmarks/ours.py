"""Our side of every case: the program's own input pipeline, step and ranking.

python -m benchmarks.ours '{"kind": "peak"}' is the measured peak of a 2,048^3 product.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarks.cases import FEATURE_DIM, PEAK_SIZE
from benchmarks.worker import Repeat, serve
from configs import csv, default
from data_pipeline.prepare import PreparedData
from data_pipeline.store import SequenceStore
from data_pipeline.tensorflow_cpu import tf
from tssr_jax.experiment import Experiment, build_experiment, make_model
from tssr_jax.losses.negatives import CHANCES, cumulative_chances
from tssr_jax.optimizer import make_optimizer
from tssr_jax.parallel import CLASSES, Devices
from tssr_jax.ranking import Ranker, initial_params, make_eval_batches, params_layout
from tssr_jax.start import initial_state
from tssr_jax.train import compiled_step, train_batches


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
    config.content.text.trained_layers = -1 if case["trained_text"] else 0
    config.model.keep_products = case["keep_products"]
    config.loss.next_item = case["next_item"]
    config.optimizer.lazy_rows = case["lazy_rows"]
    config.num_devices = 1
    return config


def full_windows(case: dict[str, Any]) -> SequenceStore:
    """Users whose training windows, or histories, are full: items drawn uniformly."""
    users, length = case["users"] or 20 * case["batch"], case["length"] + 3
    items = np.random.default_rng(0).integers(1, case["num_items"] + 1, users * length, np.int32)
    offsets = np.arange(users + 1, dtype=np.int64) * length
    return SequenceStore.in_memory(tf.constant(items), tf.constant(offsets))


def made_up_experiment(case: dict[str, Any]) -> Experiment:
    """As the program builds it, but of full windows and features that are made up."""
    config = configure(case)
    devices = Devices(config.parallel, config.num_devices)
    model = make_model(config, devices.catalogue(case["num_items"]), devices.rows_axis)
    content = {}
    if "content" in case["streams"]:
        shape = (case["num_items"] + 1, FEATURE_DIM)
        table = np.random.default_rng(1).standard_normal(shape, np.float32)
        content["text"] = devices.place(table, CLASSES)
    if case["next_item"] == "sampled":
        competes = np.minimum(np.arange(-1, case["num_items"]), 1)
        content[CHANCES] = devices.place(cumulative_chances(competes, 0.0))
    data = PreparedData("", Path(), {"items": case["num_items"]})
    return Experiment(config, data, full_windows(case), content, "", {}, None, devices, model)


def make_experiment(case: dict[str, Any]) -> Experiment:
    """On real data where the case names any."""
    return build_experiment(configure(case)) if case["folder"] else made_up_experiment(case)


def _with_last_label_only(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with the label of each window's last position only, as RecBole trains."""
    labels = np.zeros_like(batch["labels"])
    labels[:, -1] = batch["labels"][:, -1]
    return batch | {"labels": labels}


class Training:
    """Steps of training, each with the wait for its batch."""

    def __init__(self, experiment: Experiment, *, last_label_only: bool = False):
        settings, catalogue = experiment.config.optimizer, experiment.model.catalogue
        optimizer = make_optimizer(settings, catalogue, experiment.encoder_steps())
        self._state, layout = initial_state(experiment, optimizer)
        self._content = experiment.content
        self._step = compiled_step(experiment, optimizer, layout)
        batches = train_batches(experiment).iterate(0)
        if last_label_only:
            batches = map(_with_last_label_only, batches)
        self._batches: Iterator[Any] = experiment.devices.ahead(batches)

    def __call__(self) -> dict[str, float]:
        """One step; returns the seconds of waiting for its batch."""
        begin = time.perf_counter()
        batch = self.next_batch()
        waited = time.perf_counter() - begin
        self.step(batch)
        return {"waited": waited}

    def next_batch(self) -> Any:
        """Of what is trained on; packed windows take more or fewer rows."""
        return next(self._batches)

    def step(self, batch: Any) -> None:
        """One step."""
        self._state = self._step(self._state, batch, self._content)
        jax.block_until_ready(self._state)

    def compiled_text(self, batch: Any) -> str:
        """The compiled step of a batch, in HLO."""
        step: Any = self._step
        return step.lower(self._state, batch, self._content).compile().as_text()


class Ranking:
    """Ranks of all users of a made-up data set."""

    def __init__(self, case: dict[str, Any]):
        experiment = made_up_experiment(case)
        self._params = experiment.devices.build(
            lambda: initial_params(experiment), params_layout(experiment)
        )
        self._rank = Ranker(experiment)
        self._batches = make_eval_batches(experiment, "test")

    def __call__(self) -> None:
        """Ranks everybody once."""
        self._rank(self._params, self._batches)


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
    return Training(make_experiment(case), last_label_only=case["last_label_only"])


if __name__ == "__main__":
    serve(prepare)
