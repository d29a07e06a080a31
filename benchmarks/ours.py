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

from benchmarks import on_device
from benchmarks.cases import FEATURE_DIM, PEAK_SIZE
from benchmarks.worker import Repeat, serve
from configs import paper
from tssr_jax.data_pipeline.prepare import PreparedData
from tssr_jax.data_pipeline.store import SequenceStore
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.evaluation.evaluate import make_eval_batches
from tssr_jax.evaluation.ranking import Ranker
from tssr_jax.run import ItemArrays, Run, Users, assembled, build_run
from tssr_jax.training.loop import compiled_step, train_batches
from tssr_jax.training.optimizer import optimizer_of
from tssr_jax.training.state import initial_state


def configure(case: dict[str, Any]) -> ml_collections.ConfigDict:
    """The configuration of a case, for one device."""
    data = paper.get_config(f"csv:{case['folder']}") if case["folder"] else None
    config = on_device.configure(case, data)
    config.train.packing = bool(case["folder"])
    config.content.text.trained_layers = -1 if case["trained_text"] else 0
    config.num_devices = 1
    return config


def full_windows(case: dict[str, Any]) -> SequenceStore:
    """Users whose training windows, or histories, are full: items drawn uniformly."""
    users, length = case["users"] or 20 * case["batch"], case["length"] + 3
    items = np.random.default_rng(0).integers(1, case["num_items"] + 1, users * length, np.int32)
    offsets = np.arange(users + 1, dtype=np.int64) * length
    minutes = np.tile(np.arange(length, dtype=np.int32) * 1440, users)  # one item a day
    return SequenceStore.in_memory(*map(tf.constant, (items, minutes, offsets)))


def made_up_run(case: dict[str, Any]) -> Run:
    """A run as the program builds it, but with synthetic full windows and features."""
    number, features = case["num_items"], {}
    if "content" in case["streams"]:
        rng = np.random.default_rng(1)
        features["text"] = rng.standard_normal((number + 1, FEATURE_DIM), np.float32)
    arrays = ItemArrays(np.ones(number + 1, np.int64), features)
    data = PreparedData("", Path(), {"items": number})
    users = Users(data, full_windows(case))
    return assembled(configure(case), data, lambda: users, arrays, "")


def make_run(case: dict[str, Any]) -> Run:
    """A run on the case's real data, or on synthetic data if it names none."""
    return build_run(configure(case)) if case["folder"] else made_up_run(case)


def _with_last_label_only(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with the label of each window's last position only, as RecBole trains."""
    labels = np.zeros_like(batch["labels"])
    labels[:, -1] = batch["labels"][:, -1]
    return batch | {"labels": labels}


class Training:
    """Steps of training, each with the wait for its batch."""

    def __init__(self, run: Run, *, last_label_only: bool = False):
        optimizer = optimizer_of(run)
        self._state, layout = initial_state(run, optimizer)
        self._content = run.content
        self._step = compiled_step(run, optimizer, layout)
        batches = train_batches(run).iterate(0)
        if last_label_only:
            batches = map(_with_last_label_only, batches)
        self._batches: Iterator[Any] = run.devices.ahead(batches)

    def __call__(self) -> dict[str, float]:
        """One step; returns the seconds of waiting for its batch."""
        begin = time.perf_counter()
        batch = self.next_batch()
        waited = time.perf_counter() - begin
        self.step(batch)
        return {"waited": waited}

    def next_batch(self) -> Any:
        """The next training batch; the number of packed rows varies."""
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
        run = made_up_run(case)
        self._params = run.devices.build(run.initial_params, run.params_layout)
        self._rank = Ranker(run)
        self._batches = make_eval_batches(run, "test")

    def __call__(self) -> None:
        """Ranks everybody once."""
        self._rank(self._params, self._batches)


def peak() -> Repeat:
    """A large matrix product, which measures this machine's peak speed."""
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
    return Training(make_run(case), last_label_only=case["last_label_only"])


if __name__ == "__main__":
    serve(prepare)
