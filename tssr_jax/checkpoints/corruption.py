"""Separates corrupt checkpoints from machine errors."""

import contextlib
import errno
import os
from collections.abc import Iterator

import jax

# Errors of the machine, not of the file: nothing is moved aside for these.
_NOT_DAMAGE = {
    errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPERM, errno.ETIMEDOUT,
}  # fmt: skip
# Machine errors of buckets and accelerators, by name (absl::StatusCode): they have no errno.
_NOT_DAMAGE_STATUS = (
    "UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED", "ABORTED",
)  # fmt: skip


class DamagedError(Exception):
    """A checkpoint that can't be read, or whose contents are not what was written."""


@contextlib.contextmanager
def damage() -> Iterator[None]:
    """Turns a reader's error about a broken file into a DamagedError; passes on machine errors."""
    try:
        yield
    except Exception as error:
        if _is_of_the_machine(error):
            raise
        raise DamagedError(f"it can't be read ({one_line(error)})") from error


def _is_of_the_machine(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, comes from the machine and not from the file."""
    while error is not None:
        if isinstance(error, MemoryError | jax.errors.JaxRuntimeError):
            return True
        if getattr(error, "errno", None) in _NOT_DAMAGE:
            return True
        if any(word in str(error) for word in _NOT_DAMAGE_STATUS):
            return True
        error = error.__cause__ or error.__context__
    return False


def one_line(error: Exception) -> str:
    """An error's message on one line; a long one is shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) <= 200:
        return text
    # Keep the operating system's description of the error, and the end of the message.
    reasons = [os.strerror(code) for code in errno.errorcode if os.strerror(code) in text]
    return f"{max(reasons, key=len, default='')} ... {text[-200:]}".lstrip()
