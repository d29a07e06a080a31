"""A polite stop: SIGTERM, which preempted machines get before they vanish, or a limit of time."""

import signal
import threading
import time
from types import FrameType


class StopRequest:
    """Notes a SIGTERM instead of dying of it, inside a `with` block of the main thread.

    Attributes:
      terminated: whether one has come.

    Args:
      seconds: from the beginning of the block, after which a stop is requested, too; 0 is never.
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
        """Whether what runs inside has to save and to end."""
        return self.terminated or self.late

    def __enter__(self) -> "StopRequest":
        self._start = time.monotonic()
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:  # Python delivers signals to no other thread
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._is_main:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.terminated = True
