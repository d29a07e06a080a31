"""Runs one per-device body on all devices: by pmap, or by shard_map over a mesh; by jit on one.

A body is written for one device. It gets the device's rows of the global batch, its shard of arrays
that are cut along the model axis, and whole copies of everything else; collectives connect the
devices. Both ways give equal results. The devices of a process hold consecutive rows, so that a
process reads only its part of a batch.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tssr_jax.errors import UserError
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.collectives import Axis
from tssr_jax.parallel.platform import compiled_for

DATA_AXIS, MODEL_AXIS = "data", "model"
# How a body's arguments and results lie on the devices.
WHOLE = PartitionSpec()
ROWS = PartitionSpec((DATA_AXIS, MODEL_AXIS))
CLASSES = PartitionSpec(MODEL_AXIS)


class Devices:
    """The devices of a run, and how bodies are run on them.

    Attributes:
      num_devices: devices in all processes; each gets an equal number of rows of a batch.
      rows_axis: name of the axis that batches are cut along; None on a single device.

    Args:
      kind: "pmap" or "shard_map".
      num_devices: how many to use; 0 is all of them.
      model_devices: how many share one copy of the catalogue; more than 1 needs "shard_map".
      devices: those to choose from; by default all that JAX finds.

    Raises:
      UserError: if there are fewer devices, or they can't be divided like this.
    """

    def __init__(
        self,
        kind: str,
        num_devices: int = 0,
        model_devices: int = 1,
        devices: Sequence[Any] | None = None,
    ):
        devices = sorted(devices or jax.devices(), key=lambda d: (d.process_index, d.id))
        if num_devices > len(devices):
            raise UserError(
                f"--config.num_devices is {num_devices}, but there are {len(devices)} device(s): "
                f"{', '.join(str(device) for device in devices)}.{_virtual(num_devices, devices)}"
            )
        if jax.process_count() > 1 and num_devices not in (0, len(devices)):
            raise UserError(
                f"--config.num_devices is {num_devices}; with several processes all "
                f"{len(devices)} devices are used: leave it at 0."
            )
        devices = devices[: num_devices or len(devices)]
        self.num_devices = len(devices)
        if self.num_devices % model_devices:
            raise UserError(
                f"--config.model_devices is {model_devices}, which does not divide the "
                f"{self.num_devices} device(s) of the run."
            )
        if kind == "pmap" and model_devices > 1:
            raise UserError(
                f"--config.model_devices is {model_devices}: cutting the catalogue over devices "
                "needs --config.parallel=shard_map."
            )
        # A single device needs no collectives: its body is compiled as it is.
        self._alone = self.num_devices == jax.process_count() == 1
        self._kind = kind
        self._host_arrays_only = kind == "pmap" and jax.process_count() > 1
        self._model_devices = model_devices
        # The mesh that pmap creates, so that a step's results are inputs of the next step. With any
        # other mesh the step would be compiled again.
        axes = (DATA_AXIS,) if kind == "pmap" else (DATA_AXIS, MODEL_AXIS)
        grid = np.array(devices).reshape(-1, *(model_devices,) * (len(axes) - 1))
        self._mesh = Mesh(grid, axes, axis_types=(AxisType.Auto,) * len(axes))
        self._platform: str = devices[0].platform
        self.rows_axis: Axis = DATA_AXIS if kind == "pmap" else axes
        if self._alone:
            self.rows_axis = None

    def catalogue(self, num_items: int) -> Catalogue:
        """How a catalogue lies on these devices."""
        if self._model_devices == 1:
            return Catalogue(num_items)
        return Catalogue(num_items, MODEL_AXIS, self._model_devices)

    def round_up(self, rows: int) -> int:
        """The smallest number of rows that all devices can share equally."""
        return -(-rows // self.num_devices) * self.num_devices

    def local_rows(self, rows: int) -> slice:
        """The rows of a global batch that the devices of this process hold."""
        share = rows // jax.process_count()
        return slice(jax.process_index() * share, (jax.process_index() + 1) * share)

    def place(self, tree: Any, layout: Any = WHOLE) -> Any:
        """Puts arrays, which all processes hold whole, on the devices."""
        return jax.device_put(jax.tree.map(np.asarray, tree), self.shardings(layout))

    def ahead(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yields batches, rows of this process, and copies each to the devices one step early.

        The next step's batch is copied while a step runs. (With pmap and several processes a step
        takes host arrays only, and copies them when it is called.)
        """
        if self._host_arrays_only:
            yield from batches
            return
        upcoming = [self._place_rows(batch) for batch in itertools.islice(batches, 1)]
        for batch in batches:
            upcoming.append(self._place_rows(batch))
            yield upcoming.pop(0)
        yield from upcoming

    def build(self, function: Callable[..., Any], layout: Any = WHOLE, *arguments: Any) -> Any:
        """Runs a function once, and leaves its result on the devices.

        Args:
          function: pure.
          layout: layout of its result on the devices.
          *arguments: arrays on the devices; their memory is reused.
        """
        options = None
        if self._platform == "cpu":
            # Optimisation would take seconds, more than it saves in a single run.
            options = {"xla_backend_optimization_level": 1}
        compiled = jax.jit(
            function,
            out_shardings=self.shardings(layout),
            donate_argnums=tuple(range(len(arguments))),
            compiler_options=options,
        )
        return compiled(*arguments)

    def shardings(self, layout: Any) -> Any:
        """The shardings of a tree of partition specs; pmap knows whole copies only."""
        return jax.tree.map(
            lambda spec: NamedSharding(self._mesh, WHOLE if self._kind == "pmap" else spec),
            layout,
            is_leaf=lambda x: isinstance(x, PartitionSpec),
        )

    def to_global(self, tree: Any) -> Any:
        """Results of a body as arrays over all processes; pmap's results are of one process."""
        if self._kind != "pmap" or jax.process_count() == 1:
            return tree
        sharding = NamedSharding(self._mesh, WHOLE)

        def lift(x: jax.Array) -> jax.Array:
            copies = [shard.data for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape, sharding, copies)

        return jax.tree.map(lift, tree)

    def run(
        self,
        body: Callable[..., Any],
        *,
        inputs: tuple[Any, ...],
        output: Any = WHOLE,
        donate: tuple[int, ...] = (),
    ) -> Callable[..., Any]:
        """Compiles `body` for all devices.

        Products of float32 arrays have float32 precision: by default TPUs would round their inputs
        to bfloat16 and GPUs to TensorFloat-32. For more speed, choose other types
        (`config.model.compute_dtype`).

        Args:
          body: a pure function of as many pytrees as there are `inputs`.
          inputs: layout of each argument: one partition spec, or a tree of them. Arguments with
            ROWS are host arrays with the rows of this process (`local_rows`), or from `ahead`.
          output: layout of the result; not ROWS.
          donate: indices of the arguments whose memory the result may reuse.
        """
        body = self._for_these(exactly(body))
        if self._alone:
            return jax.jit(body, out_shardings=self.shardings(output), donate_argnums=donate)
        if self._kind == "pmap":
            compiled = jax.pmap(
                body,
                axis_name=DATA_AXIS,
                in_axes=tuple(0 if layout is ROWS else None for layout in inputs),
                out_axes=None,
                devices=list(self._mesh.devices.flat),
                donate_argnums=donate,
            )
        else:
            sharded = jax.shard_map(
                body, mesh=self._mesh, in_specs=inputs, out_specs=output, check_vma=False
            )
            compiled = jax.jit(sharded, donate_argnums=donate)
            if jax.process_count() == 1:
                return compiled

        def call(*arguments: Any) -> Any:
            placed = (
                self._place_rows(argument) if layout is ROWS else argument
                for argument, layout in zip(arguments, inputs, strict=True)
            )
            return compiled(*placed)

        return call

    def _for_these(self, body: Callable[..., Any]) -> Callable[..., Any]:
        """The body, which knows the platform of these devices while it is traced."""

        @functools.wraps(body)
        def own(*arguments: Any) -> Any:
            with compiled_for(self._platform):
                return body(*arguments)

        return own

    def _place_rows(self, batch: Any) -> Any:
        """Puts the rows of this process on its devices; keeps arrays that are there already."""
        return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else self._placed(x), batch)

    def _placed(self, x: np.ndarray) -> Any:
        """[rows of this process, ...] on its devices; for pmap [its devices, their rows, ...]."""
        if self._alone:
            return jax.device_put(x, self.shardings(WHOLE))
        if self._kind == "shard_map":
            return jax.make_array_from_process_local_data(NamedSharding(self._mesh, ROWS), x)
        cut = x.reshape(self.num_devices // jax.process_count(), -1, *x.shape[1:])
        if self._host_arrays_only:
            return cut
        return jax.device_put(cut, NamedSharding(self._mesh, PartitionSpec(DATA_AXIS)))


def _virtual(number: int, devices: Sequence[Any]) -> str:
    """Advice how to get more devices on a CPU."""
    if devices[0].platform != "cpu":
        return ""
    flag = f"--xla_force_host_platform_device_count={number}"
    return f" On a processor XLA_FLAGS={flag} makes so many virtual ones, to try things out."


def exactly(body: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function: its products have the full precision of their inputs' type."""

    @functools.wraps(body)
    def exact(*arguments: Any, **named: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return body(*arguments, **named)

    return exact
