"""Where a step's time goes: a trace of some steps, added up by parts of the model.

    python -m benchmarks.op_profile --only="length 50, 3.7k"
    python -m benchmarks.op_profile --config=configs/ml100k.py

The first command profiles cases of the benchmarks, the second a configuration and its data. Each
operation of the compiled step names its origin in the model; a fused operation counts for the part
of its result. The floor of a part is the time of its arithmetic at the speed of a 2,048^3 product,
or of its bytes at the speed of a copy, whichever is longer; both are measured in the same run.
The trace itself is thrown away (`--trace=FOLDER` keeps it, for TensorBoard or Perfetto).
"""

import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.profiler import ProfileData
from ml_collections import config_flags
from rich.table import Table

from benchmarks.cases import CASES, PEAK_FLOPS, Case
from benchmarks.ours import Training, made_up_run, peak
from benchmarks.parts import part_of
from benchmarks.worker import median_seconds
from tssr_jax.reporting import make_console
from tssr_jax.run import Run, build_run

_ONLY = flags.DEFINE_string("only", "step, length", "Only cases whose names contain this.")
_CONFIG = config_flags.DEFINE_config_file("config", None, "A configuration in place of the cases.")
_STEPS = flags.DEFINE_integer("steps", 5, "Steps of the trace.", lower_bound=1)
_TRACE = flags.DEFINE_string("trace", "", "Folder for the traces; by default they are not kept.")

OF_THE_CATALOGUE = ("Adam", "item table: gather, scatter", "next-item loss")
_NAMED = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = .*?op_name=\"(?P<path>[^\"]*)\"", re.M)
# Operations that only wait for others.
_WAITING = re.compile(r"^(while|conditional|call)\b")


def floors(case: Case, flops_rate: float, byte_rate: float) -> dict[str, float]:
    """Seconds that a step's parts need at least; only those whose bytes or products are clear."""
    d, rows = case.d_model, case.batch * case.length
    both = len(case.streams) == 2
    blocks = len(case.streams) * (case.num_unimodal + both * case.num_cross)
    rows_of_blocks = rows * blocks
    parameters = 2 * d * (case.num_items + 1)

    def at_bandwidth(numbers: float) -> float:
        return 4 * numbers / byte_rate

    return {
        # Read and written forward; read twice (input and gradient) and written backward.
        "layer norm": at_bandwidth(5 * 2 * rows_of_blocks * d),
        "GELU": at_bandwidth(5 * rows_of_blocks * case.d_ffn),
        # Of parameters, moments and gradients seven numbers are read or written for each.
        "Adam": at_bandwidth(7 * parameters),
        # Rows read; a gradient of zeros written, and rows of it read, added to and written.
        "item table: gather, scatter": at_bandwidth(d * (2 * rows + case.num_items + 1 + 3 * rows)),
        # Two products, and twice as many backward, of which causality needs one half.
        "attention: softmax and products": 3
        * 2
        * 2
        * rows_of_blocks
        * case.length
        * d
        / flops_rate,
        "attention: projections": 3 * 2 * 4 * rows_of_blocks * d * d / flops_rate,
        "feed-forward products": 3 * 2 * 2 * rows_of_blocks * d * case.d_ffn / flops_rate,
        "next-item loss": 3 * 2 * rows * d * (case.num_items + 1) / flops_rate,
    }


def seconds_of_operations(folder: Path) -> Iterator[tuple[str, float]]:
    """Name and seconds of each operation of a trace, as often as it ran."""
    [path] = folder.glob("**/*.xplane.pb")
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                if "hlo_op" in dict(event.stats):
                    yield event.name, event.duration_ns / 1e9


def rate(work: float, repeat: Callable[[], Any]) -> float:
    """Work per second, by the median of some repeats."""
    return work / median_seconds(repeat)


class Copy:
    """Reads 256 MiB and writes them again, in place."""

    def __init__(self) -> None:
        self._numbers = jnp.ones(2**26)
        self._add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def __call__(self) -> None:
        """Once."""
        self._numbers = jax.block_until_ready(self._add(self._numbers))


def profile(name: str, run: Run, case: Case | None, folder: Path) -> Table:
    """Traces some steps of one batch and adds up their operations.

    Args:
      name: for the title.
      run: what is trained.
      case: gives the floors; None skips them.
      folder: folder of the trace.
    """
    multiply: Any = peak()
    flops_rate, byte_rate = rate(PEAK_FLOPS, multiply), rate(2 * 4 * 2**26, Copy())
    training = Training(run)
    batch = training.next_batch()
    training.step(batch)
    paths = {
        match["name"]: match["path"] for match in _NAMED.finditer(training.compiled_text(batch))
    }
    steps = []
    with jax.profiler.trace(str(folder)):
        for _ in range(_STEPS.value):
            begin = time.perf_counter()
            training.step(batch)
            steps.append(time.perf_counter() - begin)
    seconds: dict[str, float] = defaultdict(float)
    for operation, duration in seconds_of_operations(folder):
        if not _WAITING.match(operation):
            seconds[part_of(paths.get(operation, ""))] += duration / _STEPS.value
    floor = floors(case, flops_rate, byte_rate) if case else {}
    if case and case.next_item != "full":  # these are of a step on the whole catalogue
        floor = {part: least for part, least in floor.items() if part not in OF_THE_CATALOGUE}
    busy = sum(seconds.values())
    table = Table(
        title=f"{name}: {statistics.median(steps):.3f} s a step; {flops_rate / 1e9:.0f} GFLOP/s, "
        f"{byte_rate / 1e9:.1f} GB/s"
    )
    table.add_column("part")
    for column in ("thread time", "share", "floor"):
        table.add_column(column, justify="right")
    for part, own in sorted(seconds.items(), key=lambda entry: -entry[1]):
        least = f"{floor[part] * 1e3:.1f} ms" if part in floor else ""
        table.add_row(part, f"{own * 1e3:.1f} ms", f"{own / busy:.1%}", least)
    return table


def main(argv: Sequence[str]) -> None:
    """Prints a table for each case, or for the configuration."""
    del argv
    console = make_console()
    cases = [case for case in CASES if case.kind == "train" and _ONLY.value in case.name]
    for case in [None] if _CONFIG.value else cases:
        with tempfile.TemporaryDirectory() as folder:
            name = case.name if case else "configuration"
            kept = Path(_TRACE.value or folder) / re.sub(r"\W+", "_", name)
            own = made_up_run(case.fields()) if case else build_run(_CONFIG.value)
            console.print(profile(name, own, case, kept))


if __name__ == "__main__":
    app.run(main)
