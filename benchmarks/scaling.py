"""A train step against the number of devices: time, memory, traffic, and the least on a TPU.

    python -m benchmarks.scaling --global_batch=128 --global_batch=1024

Virtual devices share this machine's cores, so that the time tells what cutting a batch costs, not
what it gains: the ratio to one device, at best 1. Repeats are interleaved, their median is told.
The last columns are the least time that the bytes sent by each device take on a v4-8 (4 chips) and
a v5e-256 with all links busy (bandwidths: tssr_jax/sizing.py), had they as many devices.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from rich.table import Table

from tssr_jax.parallel import CLASSES, ROWS, Devices
from tssr_jax.reporting import make_console
from tssr_jax.sizing import CHIPS, GIB, StepSize, compile_step, find_devices, measure

_CONFIG = config_flags.DEFINE_config_file("config", "configs/default.py", "Model and losses.")
_BATCHES = flags.DEFINE_multi_integer("global_batch", [128, 1024], "Users over all devices.")
_DEVICES = flags.DEFINE_multi_integer("devices", [1, 2, 4, 8], "Virtual devices.")
_ITEMS = flags.DEFINE_integer("num_items", 11_758, "Size of the catalogue.", lower_bound=1)
_FEATURES = flags.DEFINE_integer("feature_dim", 384, "Width of the content features.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed steps of each case.", lower_bound=1)


class Case:
    """A compiled step with something to work on.

    Attributes:
      size: what it needs.
      seconds: of each timed step.
    """

    def __init__(self, config: Any, num_devices: int):
        devices = find_devices(f"cpu:{num_devices}")
        self._step = compile_step(config, devices, _ITEMS.value, _FEATURES.value)
        self.size: StepSize = measure(self._step, config, devices)
        self.seconds: list[float] = []
        state, batch, features = self._step.args_info[0]
        rng = np.random.default_rng(0)
        run = Devices("shard_map", 0, config.model_devices, devices)
        self._state = run.place(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state))
        self._features = None  # no content stream
        if features is not None:
            self._features = run.place(np.zeros(features.shape, np.float32), CLASSES)
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


def main(argv: Sequence[str]) -> None:
    """Prints one line per case."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(_DEVICES.value))
    config = _CONFIG.value
    config.parallel = "shard_map"
    console = make_console()
    table = Table()
    for name in ("batch", "devices", "step", "to one", "held", "temporary", "sent", "v4", "v5e"):
        table.add_column(name, justify="right")
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
                f"{case.size.bytes_sent / 2**20:,.1f} MiB",
                *(f"{1e3 * case.size.bytes_sent / CHIPS[c].egress:.2f} ms" for c in ("v4", "v5e")),
            )
    console.print(table)


if __name__ == "__main__":
    app.run(main)
