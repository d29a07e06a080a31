"""Where work that is cut into blocks is done: in this process, or by workers on Ray.

    with open_engine(Place("ray", "auto")) as engine:
        for number, result in engine.map(make, blocks):
            ...

`make` is called once by each worker, and returns the function that it applies to its blocks. Both
can be pickled. A block's result does not depend on where it is computed.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import logging
import math
import os
import platform
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from tssr_jax.errors import UserError, shown

B = TypeVar("B")
R = TypeVar("R")
ENGINES = ("local", "ray")
# Blocks that a worker has: one that it works on, and the next.
_BLOCKS_OF_A_WORKER = 2
# How many workers may be lost at one block, or while they start.
_MOST_LOST = 5
# After this many seconds without a result, a line tells what the cluster waits for.
_SECONDS_OF_PATIENCE = 60.0
# How long a cluster may take to answer at its address.
_SECONDS_TO_ANSWER = 10.0
# Packages whose versions results depend on.
_ALIKE = ("jax", "numpy")


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
    # Otherwise Ray hides all accelerators from a process that it gives none.
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
    if "version" in str(error).lower():
        return f"Ray's cluster at {place.ray_address} has other versions: {shown(error, 300)}"
    return (
        f"--ray_address={place.ray_address}: there is no Ray cluster ({shown(error, 200)}). Start "
        "one (`ray start --head`, and `ray start --address=HOST:6379` on the other machines), or "
        "leave --ray_address out to use this machine."
    )


def seen_by_all(path: str) -> str:
    """A path as workers, which run in another folder, need it."""
    return path if not path or "://" in path else str(Path(path).expanduser().absolute())


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
    python = ".".join(platform.python_version_tuple()[:2])
    own = importlib.import_module("tssr_jax").__version__
    others = {name: importlib.metadata.version(name) for name in _ALIKE}
    return {"Python": python, "tssr-jax": own} | others


class OnRay:
    """An engine whose workers are actors of Ray.

    Blocks of a worker that is lost go to the others, and a new one is started in its place, as soon
    as the cluster has room for it.

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
        crew, left = _Crew(self.ray, self._workers, make), enumerate(blocks)
        again: deque[tuple[int, B]] = deque()
        try:
            while True:
                while crew.free:
                    block = again.popleft() if again else next(left, None)
                    if block is None:
                        break
                    crew.give(block)
                if crew.free and not crew.busy:
                    return  # nothing is left, and nothing is computed
                for found in crew.wait():
                    if isinstance(found, _Lost):
                        again.extend(found.blocks)
                    else:
                        yield found
        finally:
            crew.end()


class _Lost(NamedTuple):
    """The blocks of a worker that was lost, with their numbers."""

    blocks: list[Any]


class _Crew:
    """Workers on Ray, and what each of them was asked.

    Attributes:
      free: numbers of workers that take a block, each as often as it takes one.
      busy: by reference, the worker and the numbered block that it computes.
    """

    def __init__(self, ray: Any, workers: int, make: Callable[[], Callable[[Any], Any]]):
        self.free: deque[int] = deque()
        self.busy: dict[Any, tuple[int, tuple[int, Any]]] = {}
        self._ray, self._make = ray, ray.put(make)  # put once, for it may hold much
        number, resources = share_of(ray, workers)
        options = {"scheduling_strategy": "SPREAD", **resources}
        self._actor = ray.remote(_Worker).options(**options)
        self._workers: dict[int, Any] = {}
        self._starting: dict[Any, int] = {}
        self._started = self._lost_at_start = 0
        self._losses = Counter[int]()  # by number of a block
        for _ in range(number):
            self._start()

    def _start(self) -> None:
        worker = self._workers[self._started] = self._actor.remote(self._make)
        self._starting[worker.versions.remote()] = self._started
        self._started += 1

    def give(self, block: tuple[int, Any]) -> None:
        """Gives a numbered block to the next free worker."""
        own = self.free.popleft()
        self.busy[self._workers[own].run.remote(block[1])] = own, block

    def wait(self) -> Iterator[Any]:
        """Waits; yields (number, result) of blocks that are done, or `_Lost`."""
        for ref in self._done():
            starting = ref in self._starting
            own, block = (self._starting.pop(ref), None) if starting else self.busy.pop(ref)
            try:
                with own_errors(self._ray):
                    result = self._ray.get(ref)
            except WorkerLostError as error:
                self._lost(own, block, error)
                yield _Lost([block] if block else [])
                continue
            if block is None:
                _require_alike(*result)
                self._lost_at_start = 0
                self.free.extend([own] * _BLOCKS_OF_A_WORKER)
            else:
                if own in self._workers:  # it may be lost since
                    self.free.append(own)
                yield block[0], result

    def _lost(self, own: int, block: tuple[int, Any] | None, error: UserError) -> None:
        """Starts another worker; raises the error if that was tried too often."""
        if block is None:
            self._lost_at_start += 1
        else:
            self._losses[block[0]] += 1
        worst = max(self._lost_at_start - len(self._workers), *self._losses.values(), 0)
        if worst > _MOST_LOST:
            raise error
        if own in self._workers:  # else it is known by another block
            self._ray.kill(self._workers.pop(own))  # it may live: what was lost may be its result
            self.free = deque(worker for worker in self.free if worker != own)
            self._start()

    def _done(self) -> list[Any]:
        asked, begin = [*self.busy, *self._starting], time.monotonic()
        while not (done := self._ray.wait(asked, timeout=_SECONDS_OF_PATIENCE)[0]):
            waited = f"{time.monotonic() - begin:.0f} s"
            print(f"No worker has answered for {waited}; {_left(self._ray)}.", flush=True)
        return list(done)

    def end(self) -> None:
        """Ends all workers."""
        for worker in self._workers.values():
            self._ray.kill(worker)


def _require_alike(host: str, versions: dict[str, str]) -> None:
    own = _versions()
    other = {name: version for name, version in versions.items() if version != own[name]}
    if other:
        told = ", ".join(f"{name} {v} in place of {own[name]}" for name, v in other.items())
        raise UserError(
            f"The worker on {host} has {told}: install the same versions on all machines of the "
            "cluster."
        )


class WorkerLostError(UserError):
    """A worker's process, or its machine, was lost."""


def result_of(ray: Any, ref: Any) -> Any:
    """The result of a task; see `own_errors`."""
    with own_errors(ray):
        return ray.get(ref)


@contextlib.contextmanager
def own_errors(ray: Any) -> Iterator[None]:
    """Raises the error of a task itself; UserError where Ray failed.

    Raises:
      WorkerLostError: if a worker was lost, more often than it is replaced.
    """
    failures = ray.exceptions
    lost = (
        *(failures.RayActorError, failures.WorkerCrashedError),
        *(failures.OutOfMemoryError, failures.NodeDiedError, failures.ObjectLostError),
    )
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, ray.exceptions.RayError):
            raise _ray_failed(cause) from error
        raise cause from None
    except lost as error:
        raise WorkerLostError(
            f"Workers were lost again and again ({shown(error, 300)}). What was complete before "
            "stays as it was. Where memory was short, give each worker more: fewer --workers."
        ) from error
    except ray.exceptions.RayError as error:
        raise _ray_failed(error) from error


def _ray_failed(error: Exception) -> UserError:
    return UserError(f"Ray failed ({shown(error, 300)}). What was complete before stays as it was.")


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
