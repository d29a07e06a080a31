"""Runs one per-device body on all devices: by pmap, or by shard_map over a mesh.

A body is written for one device: it gets that device's rows of the global batch and whole copies
of everything else, and meets the other devices in collectives over `DATA_AXIS` alone. Both ways
give the same numbers.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tssr_jax.errors import UserError

KINDS = ("pmap", "shard_map")
DATA_AXIS = "data"
# How a body's arguments and results lie on the devices.
WHOLE = PartitionSpec()
ROWS = PartitionSpec(DATA_AXIS)


class DataParallel:
    """The devices of a run, and how bodies are run on them.

    Attributes:
      num_devices: how many there are; each gets as many rows of a batch.

    Args:
      kind: "pmap" or "shard_map".
      num_devices: how many to use; 0 is all of them.

    Raises:
      UserError: if there are fewer devices.
    """

    def __init__(self, kind: str, num_devices: int = 0):
        devices = jax.devices()
        if num_devices > len(devices):
            raise UserError(
                f"--config.num_devices is {num_devices}, but there are {len(devices)} device(s): "
                f"{', '.join(str(device) for device in devices)}."
            )
        self._kind = kind
        self._devices = devices[: num_devices or len(devices)]
        self.num_devices = len(self._devices)
        self._mesh = Mesh(np.array(self._devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))

    def round_up(self, rows: int) -> int:
        """The smallest number of rows that all devices can share equally."""
        return -(-rows // self.num_devices) * self.num_devices

    def replicate(self, tree: Any) -> Any:
        """A whole copy of each array on every device."""
        return jax.device_put(tree, NamedSharding(self._mesh, WHOLE))

    def run(
        self,
        body: Callable[..., Any],
        *,
        inputs: tuple[PartitionSpec, ...],
        output: PartitionSpec,
        donate: tuple[int, ...] = (),
    ) -> Callable[..., Any]:
        """Compiles `body` for all devices.

        Args:
          body: a pure function of as many pytrees as there are `inputs`.
          inputs: WHOLE or ROWS for each argument; host arrays with ROWS are cut along their first
            axis, which `num_devices` must divide.
          output: WHOLE for what all devices agree on; ROWS for rows, in the order of the batch.
          donate: places of the arguments whose memory the result may take.
        """
        if self._kind == "shard_map":
            sharded = jax.shard_map(
                body, mesh=self._mesh, in_specs=inputs, out_specs=output, check_vma=False
            )
            return jax.jit(sharded, donate_argnums=donate)
        mapped = jax.pmap(
            body,
            axis_name=DATA_AXIS,
            in_axes=tuple(0 if spec == ROWS else None for spec in inputs),
            out_axes=0 if output == ROWS else None,
            devices=self._devices,
            donate_argnums=donate,
        )

        def call(*arguments: Any) -> Any:
            shards = (
                jax.tree.map(self._cut, argument) if spec == ROWS else argument
                for argument, spec in zip(arguments, inputs, strict=True)
            )
            result = mapped(*shards)
            return jax.tree.map(_join, result) if output == ROWS else result

        return call

    def _cut(self, x: np.ndarray) -> np.ndarray:
        """[rows, ...] -> [devices, rows of each, ...]."""
        return x.reshape(self.num_devices, -1, *x.shape[1:])


def _join(x: jax.Array) -> jax.Array:
    """[devices, rows of each, ...] -> [rows, ...]."""
    return x.reshape(-1, *x.shape[2:])
