"""Several processes that train together: who writes, who goes first, and what all agree on."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from tssr_jax.errors import UserError


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connects this process with the others, before any device is touched.

    Args:
      coordinator: HOST:PORT of process 0; with None, all three are found out from the
        environment: Cloud TPU, Slurm, Open MPI, Kubernetes.
      num_processes: how many there are.
      process_id: which one this is, from 0.

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
    """The first process runs the block, then all others: they find its work in a shared cache.

    Where each host has a cache of its own, the others do the work again, all at once.
    """
    if not is_first():
        wait_for_all(name)
    yield
    if is_first():
        wait_for_all(name)


def wait_for_all(name: str) -> None:
    """Returns when all processes have come here."""
    multihost_utils.sync_global_devices(name)


def any_says(flag: bool) -> bool:
    """Whether the flag is set in any process; all get the same answer."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def to_host(x: jax.Array) -> np.ndarray:
    """The whole array, in every process; all have to ask for it."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
