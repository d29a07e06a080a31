"""Reads a checkpoint by one process, without the others.

Orbax reads with all processes, which wait for each other: if one of them finds damage in its part,
the others wait for ever. So the first process reads everything before.
"""

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from tssr_jax.checkpoints.corruption import damage


def read_alone(folder: epath.Path, target: Any) -> Any:
    """The arrays of one item of a checkpoint, on the host.

    Args:
      folder: of the item.
      target: a tree with its structure, shapes and types.

    Raises:
      DamagedError: if they can't be read.
    """
    empty = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), target)
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix="alone"
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    with ocp.Checkpointer(handler, multiprocessing_options=options) as reader, damage():
        return reader.restore(folder, args=ocp.args.StandardRestore(empty, strict=False))
