"""Settings of this process: huge pages, the cache of compiled programs, requests to stop."""

import hashlib
import os
import platform
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

_NAME, _SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def wanted_environment() -> dict[str, str]:
    """Missing environment variables; {} if the setting is there, or Linux would ignore it.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=0 switches huge pages off.
    """
    tunables = os.environ.get(_NAME, "")
    if _SETTING in tunables or not _POLICY.is_file() or "[madvise]" not in _POLICY.read_text():
        return {}
    return {_NAME: ":".join(filter(None, (tunables, f"{_SETTING}=1")))}


def use_huge_pages() -> None:
    """Restarts this command in the same process, with the missing setting."""
    if wanted := wanted_environment():
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


_CPU_INFO = Path("/proc/cpuinfo")


def keep_compiled_programs(folder: Path) -> None:
    """Caches compiled programs below a folder, unless JAX has another one.

    JAX_COMPILATION_CACHE_DIR=FOLDER sets another one; JAX_ENABLE_COMPILATION_CACHE=false switches
    this off. A program that was compiled for one processor may not run on another one that reads
    the same disk, so each kind of processor has its own folder.
    """
    import jax  # noqa: PLC0415 - `main` imports this module before it knows whether it needs JAX

    if jax.config.values["jax_compilation_cache_dir"] is None:
        own = folder / "compiled" / _kind_of_processor()
        jax.config.update("jax_compilation_cache_dir", str(own))
        # Dozens of small programs take seconds together; JAX leaves them out.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _kind_of_processor() -> str:
    lines = _CPU_INFO.read_text().splitlines() if _CPU_INFO.is_file() else [platform.processor()]
    features = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    described = "\n".join([platform.machine(), *sorted(features)])
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def end_with_parent(parent: int, seconds_between_looks: float = 1.0) -> None:
    """Has this process get a SIGTERM when the process that started it is gone, however it ended.

    Args:
      parent: its number; it may be gone already.
      seconds_between_looks: how often to look.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds_between_looks)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def ending_signals() -> list[signal.Signals]:
    """SIGTERM, and SIGHUP where a terminal that closes sends one, unless they are ignored."""
    known = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    return [number for number in known if signal.getsignal(number) != signal.SIG_IGN]


def leave_terminal(number: int) -> None:
    """After a SIGHUP, writes no more to the terminal, which is gone: writing would fail."""
    if hasattr(signal, "SIGHUP") and number == signal.SIGHUP:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for output in (1, 2):
            if os.isatty(output):
                os.dup2(nowhere, output)
        os.close(nowhere)


class StopRequest:
    """Records a SIGTERM or SIGHUP instead of exiting, inside a `with` block of the main thread.

    Attributes:
      terminated: whether one has arrived.

    Args:
      seconds: time from the start of the block until a stop is requested, too; 0 is never.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.terminated = False
        self._seconds = seconds

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return self._seconds > 0 and time.monotonic() - self._start >= self._seconds

    @property
    def requested(self) -> bool:
        """Whether the code inside the block must save and end."""
        return self.terminated or self.late

    def __enter__(self) -> "StopRequest":
        self._start = time.monotonic()
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:  # Python delivers signals to no other thread
            self._previous = {n: signal.signal(n, self._note) for n in ending_signals()}
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._is_main:
            for number, previous in self._previous.items():
                signal.signal(number, previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.terminated = True
        leave_terminal(number)
