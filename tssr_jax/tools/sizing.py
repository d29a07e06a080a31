"""Memory and traffic of a train step on each of some devices, which need not be present.

The step is compiled, not run: for virtual processors ("cpu:8"), or, where the package libtpu is
installed (`pip install jax[tpu]`), by the TPU's own compiler for any slice ("v5e:2x4").
"""

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
from jax.experimental import topologies
from rich.table import Table

from tssr_jax.adapting import adapted
from tssr_jax.config.by_data import filled
from tssr_jax.config.choices import reads_content, trained_fields
from tssr_jax.config.validation import validate_config
from tssr_jax.data_pipeline.prepare import prepare
from tssr_jax.errors import UserError, shown
from tssr_jax.losses.next_item import tile_size
from tssr_jax.parallel.platform import compiled_for
from tssr_jax.reporting import make_console
from tssr_jax.tools.abstract_step import abstract_step
from tssr_jax.tools.hlo import Traffic, collective_traffic, estimated_cycles

GIB = 2**30


class Chip(NamedTuple):
    """One kind of TPU chip, as Google documents it (cloud.google.com/tpu/docs/v4, .../v5e, ...).

    Attributes:
      memory: bytes of its HBM.
      peak: multiplications and additions per second, in bfloat16.
      units: matrix units of 128 x 128.
      link: bytes per second that one of its links sends: the documented interconnect bandwidth of
        a chip (v4 2,400 Gbps, v5e 400 GB/s both ways, v5p 4,800 Gbps) over its 6, 4 or 6 links.
      wraps_at: a dimension of a slice is a ring if its size is a multiple of this.
    """

    memory: float
    peak: float
    units: int
    link: float
    wraps_at: int

    @property
    def clock(self) -> float:
        """Cycles per second: a unit multiplies and adds 128 x 128 numbers in a cycle."""
        return self.peak / (2 * 128**2 * self.units)

    def egress(self, shape: str) -> float:
        """Bytes per second that the worst-placed chip of a slice ("2x4") sends over its links.

        A corner chip has one link along a dimension, two along a ring, none along a dimension of 1.
        """
        sizes = [int(n) for n in shape.split("x")]
        return self.link * sum(2 if n % self.wraps_at == 0 else int(n > 1) for n in sizes)


CHIPS = {
    "v4": Chip(32 * GIB, 275e12, 8, 50e9, 4),
    "v5e": Chip(16e9, 197e12, 4, 50e9, 16),
    "v5p": Chip(95e9, 459e12, 8, 100e9, 4),
}
_COLUMNS = (
    "devices", "batch", "held", "step", "in all", "of HBM", "computing", "MiB sent", "sending"
)  # fmt: skip
BANDWIDTHS = ", ".join(f"{name} {chip.link / 1e9:.0f}" for name, chip in CHIPS.items())


class StepSize(NamedTuple):
    """What each device needs for a step.

    Attributes:
      held: bytes of parameters, optimiser state, features and batch.
      temporary: bytes beside these while a step runs.
      cycles: the compiler's estimate of each operation, see `hlo.estimated_cycles`; collectives
        have none. [] of processors.
      traffic: by kind of collective.
    """

    held: int
    temporary: int
    cycles: list[tuple[str, int]]
    traffic: dict[str, Traffic]

    @property
    def bytes_sent(self) -> int:
        """Bytes that each device sends in one step."""
        return sum(traffic.bytes_sent for traffic in self.traffic.values())

    def describe_traffic(self) -> str:
        """MiB sent by each device, by kind of collective: "all-reduce 12.3, all-gather 4.5"."""
        return ", ".join(
            f"{kind} {traffic.bytes_sent / 2**20:,.1f}" for kind, traffic in self.traffic.items()
        )

    def compute_seconds(self, chip: Chip) -> float:
        """Time of all operations, one after the other; 0 without estimates."""
        return sum(cycles for _, cycles in self.cycles) / chip.clock

    def transfer_milliseconds(self, topology: str) -> str:
        """Time to send these bytes on a slice like "v4:2x2x1", without any other work."""
        kind, _, shape = topology.partition(":")
        egress = CHIPS[kind].egress(shape) if kind in CHIPS else 0.0
        return f"{1e3 * self.bytes_sent / egress:.2f} ms" if egress else ""


def find_devices(topology: str) -> list[Any]:
    """The devices of "cpu:N", or of a slice of TPUs like "v5e:2x4".

    Raises:
      UserError: if there is no such thing, or libtpu is not installed.
    """
    kind, _, shape = topology.partition(":")
    if kind == "cpu" and shape.isdigit() and int(shape):
        devices = jax.devices("cpu")
        if len(devices) < int(shape):
            raise UserError(f"--topology={topology}: there are {len(devices)} virtual devices.")
        return devices[: int(shape)]
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except Exception as error:
        raise UserError(
            f"--topology={topology} can't be compiled for ({shown(error, 200)}). "
            "It must be cpu:N, or a slice like v5e:2x4 or v4:2x2x1 where jax[tpu] is installed."
        ) from error


def step_size(
    config: ml_collections.ConfigDict, devices: Sequence[Any], num_items: int, feature_dim: int
) -> StepSize:
    """Compiles the train step of `config` for the devices.

    Args:
      config: `train.batch_size` is the global batch.
      devices: those of `find_devices`.
      num_items: size of the catalogue.
      feature_dim: width of the content features.
    """
    compiled = abstract_step(config, devices, num_items, feature_dim).compile()
    return measure(compiled, config, devices, num_items)


def measure(
    compiled: Any, config: ml_collections.ConfigDict, devices: Sequence[Any], num_items: int
) -> StepSize:
    """Memory, time and traffic of a compiled step; arguments as for `step_size`."""
    memory, text = compiled.memory_analysis(), compiled.as_text()
    # The one loop whose turns depend on data goes through the positions that have a label.
    positions = -(-config.train.batch_size // len(devices)) * config.model.max_length
    classes = -(-(num_items + 1) // config.model_devices)
    with compiled_for(devices[0].platform):
        size = tile_size(classes).positions
    tiles = max(1, -(-positions * config.model_devices // size))
    return StepSize(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        estimated_cycles(text, tiles),
        collective_traffic(text, len(devices), tiles),
    )


def report(
    config: ml_collections.ConfigDict,
    topologies_: Sequence[str],
    batches: Sequence[int],
    num_items: int,
    feature_dim: int,
) -> None:
    """Prints a table with a line for each slice and global batch: `tssr size`.

    Args:
      config: the configuration to train; its `num_devices` is ignored.
      topologies_: as for `find_devices`.
      batches: sizes of the global batch; by default the config's.
      num_items: size of the catalogue; 0 prepares the data and takes its size.
      feature_dim: width of the content features.
    """
    console = make_console()
    config.parallel = "shard_map"
    validate_config(config)
    config = filled(config) if num_items else adapted(config, console.print)
    num_items = num_items or prepare(config.data).num_items
    virtual = [int(n) for n in re.findall(r"\bcpu:(\d+)\b", " ".join(topologies_))]
    jax.config.update("jax_platforms", "cpu")  # a TPU of this machine is not needed, nor taken
    jax.config.update("jax_num_cpu_devices", max([1, *virtual]))
    table = Table(title=f"A train step, {num_items:,} items, d_model {config.model.d_model}")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for topology in topologies_:
        devices = find_devices(topology)
        chip = CHIPS.get(topology.partition(":")[0])
        for batch in batches or [config.train.batch_size]:
            config.train.batch_size = batch
            with console.status(f"Compiling for {topology}, batch {batch:,}"):
                size = step_size(config, devices, num_items, feature_dim)
            total = size.held + size.temporary
            table.add_row(
                topology,
                f"{batch:,}",
                *(f"{value / GIB:.3f} GiB" for value in (size.held, size.temporary, total)),
                f"{total / chip.memory:.0%}" if chip else "",
                f"{1e3 * size.compute_seconds(chip):.2f} ms" if chip else "",
                size.describe_traffic(),
                size.transfer_milliseconds(topology),
            )
    console.print(table)
    console.print(
        "Each device's: held = parameters, optimiser, features, batch; step = what a step needs "
        "beside them; computing = the estimate of the TPU's compiler; sent = by collectives in a "
        "step; sending = the time that takes with all links of the worst-placed chip busy (GB/s of "
        f"a link as Google documents them: {BANDWIDTHS}). Every position has a label here."
    )
    left_out = _left_out(config)
    if left_out:
        console.print(f"Not in these numbers: {'; '.join(left_out)}.")


def _left_out(config: ml_collections.ConfigDict) -> list[str]:
    """Parts of the configuration that `abstract_step` ignores."""
    content = config.content
    some = []
    if reads_content(config.model.streams):
        some = [
            f"the {field.partition('.')[0]} encoder, which is trained (parameters, moments, "
            "activations)"
            for field in trained_fields(content)
        ]
    if config.data.target_events or config.data.weight_column:
        some.append("events and weights of interactions (a few numbers for each position)")
    if config.train.packing:
        some.append("packing (a step is as large as without it, or smaller)")
    return some
