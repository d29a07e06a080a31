"""Coordination of processes that train together: writing, ordering, common decisions."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from tssr_jax.errors import UserError


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connects this process with the others, before any device is touched.

    Args:
      coordinator: HOST:PORT of process 0; None detects all three arguments from the environment:
        Cloud TPU, Slurm, Open MPI, Kubernetes.
      num_processes: number of processes.
      process_id: index of this process, from 0.

    Raises:
      UserError: if the others can't be found or reached.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"Could not join the other processes ({' '.join(str(error).split())}). Outside of a "
            "cluster that JAX knows, give --coordinator=HOST:PORT, --num_processes=N and "
            "--process_id=I to each process."
        ) from error


def is_first() -> bool:
    """Whether this process writes logs and tables; true where there is only one."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_goes_first(name: str) -> Iterator[None]:
    """The first process runs the block before all others, which find its results in the cache.

    If each host has its own cache, the others repeat the work, all at once.
    """
    if not is_first():
        wait_for_all(name)
    yield
    if is_first():
        wait_for_all(name)


def wait_for_all(name: str) -> None:
    """Returns when all processes have called this."""
    multihost_utils.sync_global_devices(name)


def any_says(flag: bool) -> bool:
    """Whether the flag is set in any process; all get the same answer."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def to_host(x: jax.Array) -> np.ndarray:
    """The whole array, in every process; all processes must call this."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
