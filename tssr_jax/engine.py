"""Where work that is cut into blocks is done: in this process, or by workers on Ray.

    with open_engine(Place("ray", "auto")) as engine:
        for number, result in engine.map(make, blocks):
            ...

`make` is called once by each worker, and returns the function that it applies to its blocks. Both
can be pickled. A block's result does not depend on where it is computed.
"""

import contextlib
import importlib.metadata
import importlib.util
import logging
import math
import os
import platform
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

from tssr_jax.errors import UserError, shown

B = TypeVar("B")
R = TypeVar("R")
ENGINES = ("local", "ray")
# Blocks that a worker has: one that it works on, and the next.
_BLOCKS_OF_A_WORKER = 2
# How often a worker, or a block, is started again after its process or its machine was lost.
_RETRIES = 5
# After this many seconds without a result, a line tells what the cluster waits for.
_SECONDS_OF_PATIENCE = 60.0
_SECONDS_TO_ANSWER = 10.0
# Packages whose versions results depend on.
_ALIKE = ("tssr-jax", "jax", "numpy")


class Place(NamedTuple):
    """Which engine, where.

    Attributes:
      engine: one of `ENGINES`.
      ray_address: of a cluster: "auto" for the one that this machine is part of, or HOST:PORT. ""
        starts Ray on this machine, and ends it afterwards.
      workers: number of workers; 0 is one for each GPU or TPU, or for each machine without.
    """

    engine: str = "local"
    ray_address: str = ""
    workers: int = 0


HERE = Place()


class Engine(Protocol):
    """Applies functions to blocks."""

    def map(
        self, make: Callable[[], Callable[[B], R]], blocks: Iterable[B]
    ) -> Iterator[tuple[int, R]]:
        """Applies what `make` returns to each block.

        Yields:
          The number of a block, from 0, and its result; in any order.

        Raises:
          UserError: of `make` or its function; or if workers are lost again and again.
        """


class ThisProcess:
    """An engine without other processes: one block after the other, in order."""

    def map(
        self, make: Callable[[], Callable[[B], R]], blocks: Iterable[B]
    ) -> Iterator[tuple[int, R]]:
        """See `Engine`."""
        function = None
        for number, block in enumerate(blocks):
            function = function or make()
            yield number, function(block)


IN_PROCESS = ThisProcess()


@contextlib.contextmanager
def open_engine(place: Place = HERE) -> Iterator[Engine]:
    """Starts an engine, or joins a cluster, and leaves it at the end.

    Raises:
      UserError: if Ray is not installed, or there is no cluster at the address.
    """
    if place.engine == "local":
        yield IN_PROCESS
        return
    with ray_session(place) as ray:
        yield OnRay(ray, place.workers)


@contextlib.contextmanager
def ray_session(place: Place) -> Iterator[Any]:
    """Starts Ray or joins a cluster; yields the package `ray`. Raises UserError if it can't."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("--engine=ray needs Ray: pip install 'tssr-jax[ray]', on all machines.")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers without an accelerator would otherwise lose sight of it even where Ray manages none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray  # noqa: PLC0415

    _require_reachable(place)
    options: dict[str, Any] = {"address": place.ray_address or "local"}
    if not place.ray_address:
        options |= {"num_cpus": _cores(), "include_dashboard": False}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UserError(_no_cluster(place, error)) from error
    finally:
        for number, handler in handlers.items():  # Ray's own would end the program without a word
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(number, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_reachable(place: Place) -> None:
    """Raises UserError if nothing answers at HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = place.ray_address.rpartition(":")
    if colon and port.isdecimal() and "//" not in host:
        try:
            socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()
        except OSError as error:
            raise UserError(_no_cluster(place, error)) from error


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _no_cluster(place: Place, error: Exception) -> str:
    if not place.ray_address:
        return f"Ray can't be started on this machine: {shown(error, 300)}"
    if "ersion" in str(error):
        return f"Ray's cluster at {place.ray_address} has other versions: {shown(error, 300)}"
    return (
        f"--ray_address={place.ray_address}: there is no Ray cluster ({shown(error, 200)}). Start "
        "one (`ray start --head`, and `ray start --address=HOST:6379` on the other machines), or "
        "leave --ray_address out to use this machine."
    )


class _Worker:
    """Applies a function to blocks, in a process of its own."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]):
        self._make = make
        self._function: Callable[[Any], Any] | None = None

    def versions(self) -> tuple[str, dict[str, str]]:
        """This machine's name, and the versions of what results depend on."""
        return socket.gethostname(), _versions()

    def run(self, block: Any) -> Any:
        """The result of a block."""
        self._function = self._function or self._make()
        return self._function(block)


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in _ALIKE}
    return found | {"Python": ".".join(platform.python_version_tuple()[:2])}


class OnRay:
    """An engine whose workers are actors of Ray.

    A block whose worker is lost is computed again, by another one.

    Attributes:
      ray: the package, connected.

    Args:
      ray: the package, connected.
      workers: see `Place`.
    """

    def __init__(self, ray: Any, workers: int):
        self.ray = ray
        self._workers = workers

    def map(
        self, make: Callable[[], Callable[[B], R]], blocks: Iterable[B]
    ) -> Iterator[tuple[int, R]]:
        """See `Engine`."""
        workers = self._start(make)
        free = deque(workers * _BLOCKS_OF_A_WORKER)
        running: dict[Any, tuple[int, Any]] = {}
        try:
            self._require_alike(workers)
            for number, block in enumerate(blocks):
                while not free:
                    yield from self._finished(running, free)
                worker = free.popleft()
                running[worker.run.remote(block)] = number, worker
            while running:
                yield from self._finished(running, free)
        finally:
            for worker in workers:
                self.ray.kill(worker)

    def _start(self, make: Callable[[], Any]) -> list[Any]:
        number, resources = share_of(self.ray, self._workers)
        again = {"max_restarts": _RETRIES, "max_task_retries": _RETRIES}
        actor = self.ray.remote(_Worker).options(**again, **resources, scheduling_strategy="SPREAD")
        return [actor.remote(make) for _ in range(number)]

    def _require_alike(self, workers: list[Any]) -> None:
        asked = {worker.versions.remote(): (0, worker) for worker in workers}
        own = _versions()
        while asked:
            for _, (host, versions) in self._finished(asked, deque()):
                other = {n: v for n, v in versions.items() if v != own[n]}
                if other:
                    told = ", ".join(f"{n} {v} in place of {own[n]}" for n, v in other.items())
                    raise UserError(
                        f"The worker on {host} has {told}: install the same versions on all "
                        "machines of the cluster."
                    )

    def _finished(self, running: dict[Any, tuple[int, Any]], free: deque[Any]) -> Iterator[Any]:
        """Waits for a result; yields those that are there."""
        begin, ray = time.monotonic(), self.ray
        while not (done := ray.wait(list(running), timeout=_SECONDS_OF_PATIENCE)[0]):
            print(
                f"No worker has answered for {time.monotonic() - begin:.0f} s; {_left(ray)}.",
                flush=True,
            )
        for ref in done:
            number, worker = running.pop(ref)
            yield number, result_of(ray, ref)
            free.append(worker)


def result_of(ray: Any, ref: Any) -> Any:
    """The result of a task; see `own_errors`."""
    with own_errors(ray):
        return ray.get(ref)


@contextlib.contextmanager
def own_errors(ray: Any) -> Iterator[None]:
    """Raises the error of a task itself; UserError where Ray failed."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    except ray.exceptions.RayError as error:
        raise UserError(
            f"A worker was lost {_RETRIES + 1} times ({shown(error, 300)}). What was complete "
            "before stays as it was."
        ) from error


def share_of(ray: Any, workers: int) -> tuple[int, dict[str, Any]]:
    """How many workers (0: by what the cluster has), and the resources of each of them."""
    has, nodes = ray.cluster_resources(), [node for node in ray.nodes() if node["Alive"]]
    for kind in ("GPU", "TPU"):
        if has.get(kind):
            own = {"num_gpus": 1} if kind == "GPU" else {"resources": {"TPU": 1}}
            return workers or int(has[kind]), own
    workers = workers or len(nodes)
    fewest = min(node["Resources"].get("CPU", 0) for node in nodes)
    return workers, {"num_cpus": max(1, int(fewest // math.ceil(workers / len(nodes))))}


def _left(ray: Any) -> str:
    has, left = ray.cluster_resources(), ray.available_resources()
    kinds = [kind for kind in ("CPU", "GPU", "TPU") if has.get(kind)]
    return "the cluster has " + ", ".join(
        f"{left.get(kind, 0):g} of {has[kind]:g} {kind}s free" for kind in kinds
    )
