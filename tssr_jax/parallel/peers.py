"""Signs of life between processes that train together.

Each process writes a count to the key-value store of JAX's coordinator, and reads those of the
others. Where one is silent, or tells why it ends, all end: each with one paragraph. (JAX has such
a check as well. It aborts the process, with a dump of C++ frames.)
"""

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the only way to the store, which Orbax goes as well

_FOLDER = "tssr_jax/peers"
# Seconds between two signs, and the share of the time-out after which a process counts as lost.
_SECONDS, _LOST_AFTER = 1.0, 0.8


@dataclasses.dataclass
class _Watch:
    """What this process knows of the others."""

    client: Any
    timeout: float
    answered: float = dataclasses.field(default_factory=time.monotonic)
    seen: dict[str, tuple[str, float]] = dataclasses.field(default_factory=dict)
    over: threading.Event = dataclasses.field(default_factory=threading.Event)

    def beat(self) -> None:
        """Gives signs of life, and reads those of the others."""
        count = 0
        while not (count and self.over.wait(_SECONDS)):
            count += 1
            try:
                _write(self.client, str(jax.process_index()), str(count))
                found = dict(self.client.key_value_dir_get(_FOLDER))
            except jax.errors.JaxRuntimeError:  # `look` ends this process, should it last
                continue
            now = self.answered = time.monotonic()
            for key, value in found.items():
                before = self.seen.get(key)
                if before is None or before[0] != value:
                    self.seen[key] = (value, now)
            self._require_others(now)

    def look(self) -> None:
        """Ends this process when the coordinator, which is process 0, does not answer."""
        while not self.over.wait(_SECONDS):
            silent = time.monotonic() - self.answered
            if silent > self.timeout * _LOST_AFTER:
                _end(f"process 0 has given no sign of life for {silent:.0f} seconds")

    def _require_others(self, now: float) -> None:
        for key, (value, changed) in self.seen.items():
            process, _, ended = key.removeprefix(f"{_FOLDER}/").partition("/")
            name = f"process {process}"
            if process == str(jax.process_index()):
                continue
            if ended:
                told = value.rstrip(".")
                _end(f"{name} has ended: {told}")
            if now - changed > self.timeout * _LOST_AFTER:
                _end(f"{name} has given no sign of life for {now - changed:.0f} seconds")


@contextlib.contextmanager
def watched(timeout: float) -> Iterator[None]:
    """Ends this process, in the block, when another one is silent for `timeout` seconds, or ends.

    The block must end in all processes at about one time.
    """
    own = _Watch(distributed.global_state.client, timeout)
    threads = [threading.Thread(target=target, daemon=True) for target in (own.beat, own.look)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        # A thread that is in a call of the client when Python ends would abort the process.
        own.over.set()
        for thread in threads:
            thread.join(5 * _SECONDS)


def tell_end(reason: str) -> None:
    """Tells the others why this process ends."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 may be gone
        _write(distributed.global_state.client, f"{jax.process_index()}/ended", reason)
    _let_others_end_first()


def _write(client: Any, key: str, value: str) -> None:
    client.key_value_set(f"{_FOLDER}/{key}", value, allow_overwrite=True)


def _end(reason: str) -> NoReturn:
    print(
        f"Error: Process {jax.process_index()} of {jax.process_count()} can't go on: {reason}. "
        "Start all again; the same command goes on from the last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    _let_others_end_first()
    # Without what JAX does at an exit: it waits for the others, and then aborts.
    os._exit(1)


def _let_others_end_first() -> None:
    """Process 0 holds what the others read, and JAX aborts them when it is gone."""
    if jax.process_index() == 0:
        time.sleep(4 * _SECONDS)
