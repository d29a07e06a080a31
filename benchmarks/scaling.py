"""A train step against the number of devices: time, memory, traffic, and the least on TPUs.

    python -m benchmarks.scaling --global_batch=128 --global_batch=1024

First table: measured. Virtual devices share this machine's cores, so that the time shows the cost
of cutting a batch, not its gain: the ratio to one device is at best 1. Repeats are interleaved; the
table has medians. Second table: predicted. The step is compiled, not run, for as many virtual
devices as a slice of TPUs has chips (a v4-8 is 2x2x1, a v5e-256 is 16x16), and the bytes that its
collectives send are divided by the bandwidth of the worst-placed chip's links.
"""

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from rich.table import Table

from tssr_jax.parallel.devices import CLASSES, ROWS, Devices
from tssr_jax.reporting import make_console
from tssr_jax.tools.abstract_step import abstract_step
from tssr_jax.tools.sizing import (
    BANDWIDTHS,
    GIB,
    StepSize,
    find_devices,
    measure,
    step_size,
)

_CONFIG = config_flags.DEFINE_config_file("config", "configs/default.py", "Model and losses.")
_BATCHES = flags.DEFINE_multi_integer("global_batch", [128, 1024], "Users over all devices.")
_SLICES = flags.DEFINE_multi_string("slice", ["v4:2x2x1", "v5e:16x16"], "Slices to predict for.")
_SLICE_BATCHES = flags.DEFINE_multi_integer("slice_batch", [1024, 8192], "Users on a slice.")
_DEVICES = flags.DEFINE_multi_integer("devices", [1, 2, 4, 8], "Virtual devices.")
_ITEMS = flags.DEFINE_integer("num_items", 11_758, "Size of the catalogue.", lower_bound=1)
_FEATURES = flags.DEFINE_integer("feature_dim", 384, "Width of the content features.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed steps of each case.", lower_bound=1)


class Case:
    """A compiled step with something to work on.

    Attributes:
      size: memory and traffic of the step.
      seconds: seconds of each timed step.
    """

    def __init__(self, config: Any, num_devices: int):
        devices = find_devices(f"cpu:{num_devices}")
        self._step = abstract_step(config, devices, _ITEMS.value, _FEATURES.value).compile()
        self.size: StepSize = measure(self._step, config, devices, _ITEMS.value)
        self.seconds: list[float] = []
        state, batch, features = self._step.args_info[0]
        rng = np.random.default_rng(0)
        run = Devices("shard_map", 0, config.model_devices, devices)
        self._state = run.place(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state))
        tables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), features)
        self._features = run.place(tables, CLASSES)
        windows = rng.integers(1, _ITEMS.value, batch["labels"].shape, np.int32)
        self._batch = run.place(
            {
                "item_sequence": windows,
                "labels": windows,
                "row_mask": np.ones(len(windows), bool),
            },
            ROWS,
        )

    def step(self) -> None:
        """Times one step."""
        begin = time.perf_counter()
        self._state = self._step(self._state, self._batch, self._features)
        jax.block_until_ready(self._state)
        self.seconds.append(time.perf_counter() - begin)


def make_table(title: str, *names: str) -> Table:
    """An empty table of right-aligned columns."""
    table = Table(title=title)
    for name in names:
        table.add_column(name, justify="right")
    return table


def measured(config: Any) -> Table:
    """One line for each batch and number of devices."""
    columns = ("batch", "devices", "step", "to one", "held", "temporary", "MiB sent by each device")
    table = make_table(f"Measured, {_ITEMS.value:,} items", *columns)
    for config.train.batch_size in _BATCHES.value:
        cases = {number: Case(config, number) for number in _DEVICES.value}
        for _ in range(_REPEATS.value + 1):  # the first one warms up
            for case in cases.values():
                case.step()
        medians = {n: statistics.median(case.seconds[1:]) for n, case in cases.items()}
        for number, case in cases.items():
            table.add_row(
                f"{config.train.batch_size:,}",
                str(number),
                f"{medians[number]:.3f} s",
                f"{medians[number] / medians[min(medians)]:.2f}",
                *(f"{n / GIB:.2f} GiB" for n in (case.size.held, case.size.temporary)),
                case.size.describe_traffic(),
            )
    return table


def predicted(config: Any) -> Table:
    """One line for each slice and batch."""
    columns = ("slice", "batch", "held", "temporary", "MiB sent by each device", "at least")
    table = make_table(f"Predicted (GB/s of a link, as Google documents: {BANDWIDTHS})", *columns)
    for topology in _SLICES.value:
        for config.train.batch_size in _SLICE_BATCHES.value:
            devices = find_devices(f"cpu:{chips(topology)}")
            size = step_size(config, devices, _ITEMS.value, _FEATURES.value)
            table.add_row(
                topology,
                f"{config.train.batch_size:,}",
                *(f"{n / GIB:.2f} GiB" for n in (size.held, size.temporary)),
                size.describe_traffic(),
                size.transfer_milliseconds(topology),
            )
    return table


def chips(topology: str) -> int:
    """Chips of a slice like "v5e:16x16"."""
    return math.prod(int(n) for n in topology.partition(":")[2].split("x"))


def main(argv: Sequence[str]) -> None:
    """Prints both tables."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    most = max(*_DEVICES.value, *map(chips, _SLICES.value))
    jax.config.update("jax_num_cpu_devices", most)
    config = _CONFIG.value
    config.parallel = "shard_map"
    console = make_console()
    console.print(measured(config))
    console.print(predicted(config))


if __name__ == "__main__":
    app.run(main)
