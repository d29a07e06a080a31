"""A polite stop: SIGTERM, which preempted machines get before they vanish."""

import signal
import threading
from types import FrameType


class StopRequest:
    """Notes a SIGTERM instead of dying of it, inside a `with` block of the main thread.

    Attributes:
      requested: whether one has come.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopRequest":
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:  # Python delivers signals to no other thread
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._is_main:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True
