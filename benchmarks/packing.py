"""What packing saves: share of padding, and sequences per second of the whole training step.

    python -m benchmarks.packing --config=configs/paper.py:csv:FOLDER

Both ways take the same batches. Blocks of `--steps` steps are interleaved; the table has medians. A
step that compiles (a packed batch with a new number of rows) is reported separately.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from rich.table import Table

from tssr_jax.data_pipeline.input_pipeline import make_train_batches
from tssr_jax.models.content import CONTENT_LAYOUT
from tssr_jax.parallel.devices import ROWS
from tssr_jax.reporting import make_console
from tssr_jax.run import Run, build_run
from tssr_jax.training.gate_inputs import gate_inputs
from tssr_jax.training.optimizer import make_optimizer
from tssr_jax.training.state import initial_state
from tssr_jax.training.step import make_train_step

_CONFIG = config_flags.DEFINE_config_file("config", None, "Data and model.")
_STEPS = flags.DEFINE_integer("steps", 10, "Steps of a block.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Blocks of each way.", lower_bound=1)


class Way:
    """One way to train.

    Attributes:
      seconds: seconds of each step, except steps that compiled.
      padding: share of the encoded positions that hold no item, of each batch.
    """

    def __init__(self, run: Run, packing: bool):
        config = run.config.copy_and_resolve_references()
        config.train.packing = packing
        optimizer = make_optimizer(config.optimizer, run.model.classes)
        self._state, layout = initial_state(run, optimizer)
        self._step = run.devices.run(
            make_train_step(run.model, optimizer, config),
            inputs=(layout, ROWS, CONTENT_LAYOUT),
            output=layout,
            donate=(0,),
        )
        self._features = run.content
        batches = make_train_batches(run.sequences, config, gate=gate_inputs(run))
        # From the second epoch on, packed batches have the fewest rows.
        self._batches: Iterator[Any] = batches.iterate(batches.steps_per_epoch)
        self._shapes: set[int] = set()
        self.seconds: list[float] = []
        self.compile_seconds: list[float] = []
        self.padding: list[float] = []

    def run(self, steps: int) -> None:
        """Times some steps, each with the wait for its batch."""
        for _ in range(steps):
            begin = time.perf_counter()
            batch = next(self._batches)
            self._state = self._step(self._state, batch, self._features)
            jax.block_until_ready(self._state)
            seconds = time.perf_counter() - begin
            encoded = batch["packed"]["items"] if "packed" in batch else batch["item_sequence"]
            self.padding.append(float(np.mean(encoded == 0)))
            known = len(encoded) in self._shapes
            (self.seconds if known else self.compile_seconds).append(seconds)
            self._shapes.add(len(encoded))


def main(argv: Sequence[str]) -> None:
    """Prints one line for each way."""
    del argv
    run = build_run(_CONFIG.value)
    config = run.config
    ways = {"padded": Way(run, False), "packed": Way(run, True)}
    for _ in range(_REPEATS.value):
        for way in ways.values():
            way.run(_STEPS.value)
    table = Table(title=f"batch {config.train.batch_size}, length {config.model.max_length}")
    for name in ("", "padding", "step", "sequences/s", "to padded", "compiled"):
        table.add_column(name, justify="right")
    medians = {name: statistics.median(way.seconds) for name, way in ways.items()}
    for name, way in ways.items():
        table.add_row(
            name,
            f"{statistics.mean(way.padding):.1%}",
            f"{medians[name]:.3f} s",
            f"{config.train.batch_size / medians[name]:,.0f}",
            f"{medians['padded'] / medians[name]:.2f}",
            f"{len(way.compile_seconds)} times, {sum(way.compile_seconds):.0f} s",
        )
    make_console().print(table)


if __name__ == "__main__":
    app.run(main)
