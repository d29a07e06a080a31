"""Trials side by side: each in a process of its own, here or on any machine of a Ray cluster."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from etils import epath

from tssr_jax.engine import (
    HERE,
    Place,
    WorkerLostError,
    ray_session,
    result_of,
    seen_by_all,
    share_of,
)
from tssr_jax.errors import UserError
from tssr_jax.reporting import METRICS_FILE
from tssr_jax.studies.trial import LOG_FILE, Trial

_SECONDS_BETWEEN_LOOKS = 1.0
# How often a trial goes on on another machine after its own was lost.
_RETRIES = 5
# In the folder of a trial on Ray: its training is to save and to end.
_STOP_FILE = "stop"
_VALIDATION = "validation/ndcg@10"
# Epoch and NDCG@10 of each validation, in order.
Validations = list[tuple[float, float]]


class Pace(NamedTuple):
    """How the trials of a study or a search are run.

    Attributes:
      minutes: time limit of a trial's training; 0 is no limit.
      at_once: trials that run side by side on this machine, each with its share of the cores.
      place: where they run; on Ray as many side by side as there are workers.
      prune: whether a search ends trials early that fall behind the others.
    """

    minutes: float = 0.0
    at_once: int = 1
    place: Place = HERE
    prune: bool = False


UNHURRIED = Pace()


class Process(Protocol):
    """A training that runs."""

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""

    def end(self) -> None:
        """Asks it to save and to end, and waits for that."""


class Slots:
    """Threads that each wait for one process at a time.

        with Slots(2) as slots:
            futures = [slots.submit(run, trial) for trial in trials]

    A thread's processes run on its share of the cores, if the system can bind them. An exception
    (Ctrl-C, too) cancels all calls that have not started, and sets `stopped`.

    Attributes:
      number: number of threads.
      stopped: set when running calls must end.

    Args:
      number: of threads.

    Raises:
      UserError: if there are fewer cores than that.
    """

    def __init__(self, number: int):
        bound = hasattr(os, "sched_getaffinity")
        cores = sorted(os.sched_getaffinity(0)) if bound else list(range(os.cpu_count() or 1))
        if number > len(cores):
            raise UserError(
                f"--trials_at_once={number}, but this process may use {len(cores)} cores: each "
                "trial needs at least one of its own."
            )
        shares: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        for i in range(number):
            shares.put(cores[i::number])

        def take_cores() -> None:
            # Of this thread only; a process inherits them from the thread that starts it.
            os.sched_setaffinity(0, shares.get())

        self._open(number, take_cores if bound else None)

    def _open(self, number: int, first: Callable[[], None] | None = None) -> None:
        self.number = number
        self.stopped = threading.Event()
        self._threads = ThreadPoolExecutor(number, initializer=first)

    def start(self, trial: Trial, minutes: float) -> Process:
        """Starts the process of a trial."""
        return _LocalProcess(str(trial.folder), minutes, trial.refit)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Calls a function in the next thread that is free."""
        return self._threads.submit(function, *arguments)

    def __enter__(self) -> "Slots":
        if threading.current_thread() is threading.main_thread():
            # Restore Python's own handler: polars' handler does not wake a waiting thread.
            signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.stopped.set()
        self._threads.shutdown(wait=True, cancel_futures=kind is not None)


class _LocalProcess:
    """The process of a trial, whose output goes to its log."""

    def __init__(self, folder: str, minutes: float, refit: bool):
        command = [
            *(sys.executable, "-m", "tssr_jax.studies.worker"),
            *(f"--folder={folder}", f"--minutes={minutes}", f"--parent={os.getpid()}"),
            f"--refit={refit}",
        ]
        with (epath.Path(folder) / LOG_FILE).open("a") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def poll(self) -> int | None:
        """See `Process`."""
        return self._process.poll()

    def end(self) -> None:
        """See `Process`."""
        self._process.terminate()
        self._process.wait()


class RaySlots(Slots):
    """Threads that each wait for one task of Ray at a time, which runs the process of a trial.

    A trial whose machine is lost goes on from its last checkpoint, on another one.

    Args:
      ray: the package, connected.
      place: see `Place`.
    """

    def __init__(self, ray: Any, place: Place):
        number, resources = share_of(ray, place.workers)
        self._ray = ray
        task = ray.remote(_run_to_its_end)
        self._task = task.options(max_retries=_RETRIES, scheduling_strategy="SPREAD", **resources)
        self._open(number)

    def start(self, trial: Trial, minutes: float) -> Process:
        """See `Slots`."""
        (trial.folder / _STOP_FILE).unlink(missing_ok=True)
        ref = self._task.remote(seen_by_all(str(trial.folder)), minutes, trial.refit)
        return _RayProcess(self._ray, ref, trial.folder / _STOP_FILE)


class _RayProcess:
    """A task that runs the process of a trial."""

    def __init__(self, ray: Any, ref: Any, stop: epath.Path):
        self._ray, self._ref, self._stop = ray, ref, stop

    def poll(self) -> int | None:
        """See `Process`."""
        done, _ = self._ray.wait([self._ref], timeout=0)
        if not done:
            return None
        try:
            return int(result_of(self._ray, self._ref))
        except WorkerLostError:
            return 1  # the trial has failed; others are run

    def end(self) -> None:
        """See `Process`."""
        if self.poll() is None:
            self._stop.touch()
            # For a task that has not begun. In one that has, it is as Ctrl-C, which may be lost.
            self._ray.cancel(self._ref)
            self._ray.wait([self._ref])
        self._stop.unlink(missing_ok=True)


def _run_to_its_end(folder: str, minutes: float, refit: bool) -> int:
    """Runs the process of a trial until it ends, or is to stop; returns its exit status."""
    process, stop = _LocalProcess(folder, minutes, refit), epath.Path(folder) / _STOP_FILE
    try:
        while (status := process.poll()) is None and not stop.exists():
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return 1 if status is None else status
    finally:
        process.end()


@contextlib.contextmanager
def open_slots(pace: Pace) -> Iterator[Slots]:
    """Slots for as many trials side by side as `pace` says.

    Raises:
      UserError: if this machine has fewer cores than that, or there is no cluster.
    """
    if pace.place.engine == "local":
        with Slots(pace.at_once) as slots:
            yield slots
        return
    if pace.at_once > 1:
        raise UserError(
            "--trials_at_once is for --engine=local; on Ray --workers says how many trials run "
            "side by side, by default one on each machine (or each GPU or TPU)."
        )
    with ray_session(pace.place) as ray, RaySlots(ray, pace.place) as slots:
        yield slots


class News:
    """The newest message of each running trial, joined to one line.

    Args:
      show: gets the line when a word changes.
    """

    def __init__(self, show: Callable[[str], None]):
        self._show = show
        self._words: dict[str, str] = {}
        self._lock = threading.Lock()

    def of(self, name: str) -> Callable[[str], None]:
        """Returns the function that reports one trial's message; an empty message removes it."""

        def tell(word: str) -> None:
            with self._lock:
                if word:
                    self._words[name] = f"{name}: {word}"
                else:
                    self._words.pop(name, None)
                self._show("; ".join(self._words.values()))

        return tell


def run_trial(
    trial: Trial,
    minutes: float,
    tell: Callable[[str], None],
    slots: Slots,
    hopeless: Callable[[Validations], bool] = lambda _: False,
) -> bool:
    """Runs a trial's process to its end.

    Args:
      trial: prepared.
      minutes: time limit of its training; 0 is no limit.
      tell: called with the trial's newest message.
      slots: starts the process, and says when the training must save and end.
      hopeless: called with the validations so far, about once a second; True ends the training.

    Returns:
      Whether the trial has ended with a result.
    """
    process = slots.start(trial, minutes)
    try:
        while (status := process.poll()) is None and not slots.stopped.wait(_SECONDS_BETWEEN_LOOKS):
            tell(_news(trial))
            if hopeless(validations(trial)):
                break
    finally:
        process.end()
        tell("")
    return status == 0 and trial.done


def validations(trial: Trial) -> Validations:
    """Epoch and validation NDCG@10 of each validation that a trial has written so far."""
    return [(r["epoch"], r[_VALIDATION]) for r in _metrics(trial) if _VALIDATION in r]


def _metrics(trial: Trial) -> list[dict[str, float]]:
    path = trial.run / METRICS_FILE
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]  # the last line may be half written
    return [json.loads(line) for line in whole.splitlines()]


def _news(trial: Trial) -> str:
    """The newest record of its training, in words."""
    records = _metrics(trial)
    if not records:
        return "preparing"
    value = records[-1].get(_VALIDATION)
    rank = "" if value is None else f", validation NDCG@10 {value:.4f}"
    return f"epoch {records[-1]['epoch']:g}{rank}"
