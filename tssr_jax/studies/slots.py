"""Trials side by side: each in a process of its own, with its own share of the cores."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from tssr_jax.errors import UserError
from tssr_jax.reporting import METRICS_FILE
from tssr_jax.studies.trial import LOG_FILE, Trial

_SECONDS_BETWEEN_LOOKS = 1.0


class Pace(NamedTuple):
    """How the trials of a study or a search are run.

    Attributes:
      minutes: time limit of a trial's training; 0 is no limit.
      at_once: trials that run side by side, each with its share of the cores.
    """

    minutes: float = 0.0
    at_once: int = 1


UNHURRIED = Pace()


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
        self.number = number
        self.stopped = threading.Event()
        self._shares: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        for i in range(number):
            self._shares.put(cores[i::number])
        self._threads = ThreadPoolExecutor(number, initializer=self._take_cores if bound else None)

    def _take_cores(self) -> None:
        # Of this thread only; a process inherits them from the thread that starts it.
        os.sched_setaffinity(0, self._shares.get())

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
    trial: Trial, minutes: float, tell: Callable[[str], None], stopped: threading.Event
) -> bool:
    """Runs a trial's process to its end.

    Args:
      trial: prepared.
      minutes: time limit of its training; 0 is no limit.
      tell: called with the trial's newest message.
      stopped: tells the training to save and to end.

    Returns:
      Whether the trial has ended with a result.
    """
    command = [
        *(sys.executable, "-m", "tssr_jax.studies.worker"),
        *(f"--folder={trial.folder}", f"--minutes={minutes}"),
    ]
    with (trial.folder / LOG_FILE).open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None and not stopped.wait(_SECONDS_BETWEEN_LOOKS):
                tell(_news(trial))
        finally:
            process.terminate()
            process.wait()
            tell("")
    return process.returncode == 0 and trial.result() is not None


def _news(trial: Trial) -> str:
    """The newest line of its metrics, in words."""
    path = trial.run / METRICS_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        record = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        record = {}  # it is being written
    value = record.get("validation/ndcg@10")
    rank = "" if value is None else f", validation NDCG@10 {value:.4f}"
    return f"epoch {record['epoch']:g}{rank}" if record else "preparing"
