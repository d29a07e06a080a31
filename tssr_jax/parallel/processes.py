"""Coordination of processes that train together: writing, ordering, common decisions."""

import contextlib
import os
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tssr_jax.errors import EndsAllError, UserError, shown
from tssr_jax.parallel import peers

_SECONDS_TO_BE_TOLD = 3.0
# More than twice what `peers` waits before it ends this process.
_SECONDS_TO_END = 20


@contextlib.contextmanager
def joined(
    coordinator: str | None, num_processes: int | None, process_id: int | None, peer_timeout: int
) -> Iterator[None]:
    """Connects this process with the others for the block, before any device is touched.

    All leave it together.

    Args:
      coordinator: HOST:PORT of process 0; None detects all three arguments from the environment:
        Cloud TPU, Slurm, Open MPI, Kubernetes.
      num_processes: number of processes.
      process_id: index of this process, from 0.
      peer_timeout: seconds that the others may take to come, and in which each gives a sign of
        life; without one, all end.

    Raises:
      UserError: if the others can't be found or reached.
    """
    # JAX itself would abort, with a dump of C++ frames.
    late = threading.Timer(peer_timeout, _end_alone, (peer_timeout,))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=2 * peer_timeout,
            # `peers` comes first: JAX counts from a heartbeat up to half of this time earlier.
            heartbeat_timeout_seconds=4 * peer_timeout + _SECONDS_TO_END,
        )
    except (RuntimeError, ValueError) as error:
        # The client of processes that never met can't be shut down: JAX would abort.
        raise EndsAllError(
            f"Could not join the other processes ({shown(error, 200)}). Outside of a "
            "cluster that JAX knows, give --coordinator=HOST:PORT, --num_processes=N and "
            "--process_id=I to each process."
        ) from error
    finally:
        late.cancel()
    with peers.watched(peer_timeout):
        yield
        wait_for_all("the end")


def _end_alone(seconds: int) -> None:
    print(
        f"Error: Not all processes have come within {seconds} seconds (--peer_timeout). Start all "
        "of them, with the same --coordinator and --num_processes, and another --process_id each; "
        "look whether their machines reach each other.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Raises EndsAllError in the place of an error that other processes don't see.

    These are errors of this process, which the others are told, and those that JAX raises when
    another process is gone.
    """
    try:
        yield
    except UserError as error:
        if jax.process_count() == 1:
            raise
        peers.tell_end(str(error))
        raise EndsAllError(str(error)) from error
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        time.sleep(_SECONDS_TO_BE_TOLD)  # why the other has ended: then this process ends here
        raise EndsAllError(
            f"Process {jax.process_index()} of {jax.process_count()} can't go on: another one has "
            f"ended, or can't be reached ({shown(error)}). Start all again; the same command goes "
            "on from the last checkpoint."
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


def require_alike(what: str, values: Mapping[str, Any]) -> None:
    """Compares values of all processes by their digests.

    Args:
      what: they are, for the error.
      values: by name; their `repr` is compared.

    Raises:
      UserError: in all processes, if one has another value; names the first that differs.
    """
    if jax.process_count() == 1:
        return
    names = sorted(values)
    # The names themselves come first: processes of other versions have others.
    for some in ({"fields": names}, values):
        digests = [zlib.crc32(repr(some[name]).encode()) for name in sorted(some)]
        everyone = multihost_utils.process_allgather(np.array(digests, np.uint32))
        process, place = np.unravel_index(np.argmax(everyone != everyone[0]), everyone.shape)
        if process:
            name = sorted(some)[place]
            raise UserError(
                f"The processes have different {what}: process {process} has another {name} than "
                f"process 0 (here, in process {jax.process_index()}, it is "
                f"{shown(repr(some[name]))}). Start all with the same command, version and data."
            )


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
