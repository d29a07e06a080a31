"""What the TPU's own compiler expects of a training step: time by parts, memory, use of the chip.

    pip install 'jax[tpu]'
    python -m benchmarks.tpu_prediction --chip=v5e --chip=v5p

No TPU is needed: the step is compiled, not run. A chip's time is the sum of the compiler's
estimates of all operations, without the work between chips. "MFU at most" is the arithmetic of the
mathematics over this time and the chip's peak in bfloat16. Cases whose names start with "H&M" have
its 105,000 items and `configs/hm.py`, with memories.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

import jax
import ml_collections
from absl import app, flags
from rich.table import Table

from benchmarks.cases import CASES, FEATURE_DIM, Case
from benchmarks.ours import configure
from benchmarks.parts import part_of
from configs import hm
from tssr_jax.config.by_data import filled
from tssr_jax.errors import shown
from tssr_jax.reporting import make_console
from tssr_jax.tools.sizing import CHIPS, GIB, StepSize, find_devices, step_size

# The smallest slice that the compiler knows; one of its chips is compiled for.
_SLICES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v4": "v4:2x2x1"}
_OF_HM = 105_000

_CHIPS = flags.DEFINE_multi_enum("chip", ["v5e", "v5p"], list(_SLICES), "Kinds of chips.")
_BATCHES = flags.DEFINE_multi_integer("batch", [128], "Windows of a step on a chip.")
_TYPES = flags.DEFINE_multi_enum(
    "dtype", ["float32", "bfloat16"], ["float32", "bfloat16"], "Types of products."
)
_ONLY = flags.DEFINE_string("only", "", "Only cases whose names contain this.")
_PARTS = flags.DEFINE_integer("parts", 4, "So many parts of the model are named.", lower_bound=0)


def settings() -> Iterator[tuple[str, ml_collections.ConfigDict, int, Case | None]]:
    """Name, configuration, items, and the case whose arithmetic is known."""
    for case in CASES[:3]:
        yield case.name.removeprefix("step, "), configure(case.fields()), case.num_items, case
    yield "H&M, length 50, memories", filled(hm.get_config()), _OF_HM, None


def by_parts(size: StepSize, clock: float) -> str:
    """The parts of the model that take longest, with their milliseconds."""
    parts: dict[str, float] = defaultdict(float)
    for origin, cycles in size.cycles:
        parts[part_of(origin)] += 1e3 * cycles / clock
    longest = sorted(parts.items(), key=lambda part: -part[1])[: _PARTS.value]
    return ", ".join(f"{part} {milliseconds:.1f}" for part, milliseconds in longest)


def main(argv: Sequence[str]) -> None:
    """Prints a table for each chip."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    console = make_console()
    for name in _CHIPS.value:
        chip, devices = CHIPS[name], find_devices(_SLICES[name])[:1]
        table = Table(title=f"A training step on one {name}, as its compiler expects it")
        for column in ("case", "batch", "products", "step", "MFU at most", "memory", "parts, ms"):
            table.add_column(column, justify="left" if column == "parts, ms" else "right")
        for title, config, items, case in settings():
            if _ONLY.value not in title:
                continue
            for config.train.batch_size in _BATCHES.value:
                for config.model.compute_dtype in _TYPES.value:
                    begin = time.perf_counter()
                    try:
                        size = step_size(config, devices, items, FEATURE_DIM)
                    except jax.errors.JaxRuntimeError as error:  # such as too little memory
                        table.add_row(title, f"{config.train.batch_size:,}", shown(error, 200))
                        continue
                    seconds = size.compute_seconds(chip)
                    flops = case.flops() * config.train.batch_size / case.batch if case else 0.0
                    row = (
                        title,
                        f"{config.train.batch_size:,}",
                        config.model.compute_dtype,
                        f"{1e3 * seconds:.1f} ms",
                        f"{flops / chip.peak / seconds:.1%}" if flops else "",
                        f"{(size.held + size.temporary) / GIB:.2f} GiB",
                        by_parts(size, chip.clock),
                    )
                    table.add_row(*row)
                    console.print(*row, f"({time.perf_counter() - begin:.0f} s)", sep="; ")
        console.print(table)


if __name__ == "__main__":
    app.run(main)
