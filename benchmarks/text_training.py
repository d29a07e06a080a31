"""A step that trains the text encoder: each distinct item once, or every position; and LoRA.

    python -m benchmarks.text_training --config=configs/text.py:ml1m

All ways start from the same values and take the same batches, in turn. "Every position" encodes the
whole batch of texts, padding and repeats included, all padded to the longest. "Adapters" trains
LoRA of rank 8; "frozen" takes precomputed features.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from rich.table import Table

from tssr_jax.content.text_encoder import TextInputs, TrainedText
from tssr_jax.data_pipeline.input_pipeline import make_train_batches
from tssr_jax.models.content import DistinctFeatures
from tssr_jax.reporting import make_console
from tssr_jax.run import build_run
from tssr_jax.tools.sizing import GIB
from tssr_jax.training.optimizer import optimizer_of
from tssr_jax.training.state import initial_state
from tssr_jax.training.step import make_train_step

_CONFIG = config_flags.DEFINE_config_file("config", "configs/text.py:ml1m", "Data and model.")
_STEPS = flags.DEFINE_integer("steps", 3, "Timed steps of each way.", lower_bound=1)
_WAYS = flags.DEFINE_list("ways", ["distinct", "every", "adapters", "frozen"], "Which to time.")


class EveryPosition(TrainedText):
    """The encoder, called on every position of a batch."""

    def distinct_features(
        self, params: Any, inputs: TextInputs, part: jax.Array, axis: Any
    ) -> DistinctFeatures:
        """All positions' vectors, then the mean of each item's, which are equal."""
        del axis
        positions = part
        fill = self.number_of_rows(positions.size) - positions.size
        rows = jnp.pad(positions, (0, fill))[:, None]  # one text in each row
        vectors = self.encode(params, inputs, rows)[:, 0]
        classes = inputs.lengths.size
        total = jax.ops.segment_sum(vectors[: positions.size], positions, classes)
        number = jnp.bincount(positions, length=classes)
        mean = total / jnp.maximum(number, 1)[:, None]
        return DistinctFeatures(jnp.arange(classes), mean)


class Way:
    """One way to get the vectors of a batch's items, with a train state of its own.

    Attributes:
      compile_seconds: seconds to compile its step.
      temporary: bytes that a step needs beside its arguments.
      trained: parameters of the encoder that are trained.
      seconds: of each step.
    """

    def __init__(self, name: str, config: ml_collections.ConfigDict):
        self._name = name
        self._run = run = build_run(config)
        encoders: dict[str, Any] = dict(run.trained)
        if name == "every":
            encoders["text"] = EveryPosition(**vars(encoders["text"]))
        optimizer = optimizer_of(run)
        self._state, _ = initial_state(run, optimizer)
        self._batches = make_train_batches(run.sequences, config, encoders=run.encoders).iterate(0)
        self._batch = self._next()
        model = run.model.clone(rows_axis=None)
        step = jax.jit(make_train_step(model, optimizer, config, encoders), donate_argnums=0)
        begin = time.perf_counter()
        self._step = step.lower(self._state, self._batch, run.content).compile()
        self.compile_seconds = time.perf_counter() - begin
        memory: Any = self._step.memory_analysis()
        self.temporary = memory.temp_size_in_bytes
        self.trained = sum(x.size for x in jax.tree.leaves(run.pretrained))
        self.seconds: list[float] = []

    def _next(self) -> Mapping[str, Any]:
        batch = next(self._batches)
        if self._name == "every":
            batch["distinct"] = {"text": batch["item_sequence"].reshape(-1)}
        return batch

    def take(self) -> int:
        """One step; returns the number of distinct items, padding included."""
        begin = time.perf_counter()
        state = self._step(self._state, self._batch, self._run.content)
        self._state = jax.block_until_ready(state)
        self.seconds.append(time.perf_counter() - begin)
        distinct = len(np.unique(self._batch["item_sequence"]))
        self._batch = self._next()
        return distinct


def main(argv: Sequence[str]) -> None:
    """Prints one line for each way."""
    del argv
    config = _CONFIG.value
    config.num_devices = 1
    config.parallel = "shard_map"
    ways = {}
    for name in _WAYS.value:
        own = config.copy_and_resolve_references()
        text = own.content.text
        text.lora_rank = 8 if name == "adapters" else 0
        text.trained_layers = 0 if name == "frozen" else text.trained_layers or -1
        ways[name] = Way(name, own)
    console = make_console()
    counts = []
    for _ in range(_STEPS.value):
        *_, distinct = [way.take() for way in ways.values()]  # the same for all
        counts.append(distinct)
        times = (f"{name} {way.seconds[-1]:.2f} s" for name, way in ways.items())
        console.print(", ".join(times))
    positions = config.train.batch_size * config.model.max_length
    table = Table(title=f"{positions:,} positions, {np.mean(counts):,.0f} distinct items")
    for column in ("", "step", "to the first", "memory", "trained", "compiling"):
        table.add_column(column, justify="right")
    medians = {name: statistics.median(way.seconds) for name, way in ways.items()}
    for name, way in ways.items():
        table.add_row(
            name,
            f"{medians[name]:.2f} s",
            f"{medians[name] / next(iter(medians.values())):.2f}",
            f"{way.temporary / GIB:.2f} GiB",
            f"{way.trained:,}",
            f"{way.compile_seconds:.1f} s",
        )
    console.print(table)


if __name__ == "__main__":
    app.run(main)
