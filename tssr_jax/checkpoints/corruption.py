"""What of all that can go wrong with reading a checkpoint is the file's fault."""

import contextlib
import errno
import os
from collections.abc import Iterator

import jax

# Errors of the machine, not of the file: nothing is moved aside for these.
_NOT_DAMAGE = {
    errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPERM, errno.ETIMEDOUT,
}  # fmt: skip
# The same of buckets and accelerators, which have no numbers (absl::StatusCode).
_NOT_DAMAGE_STATUS = (
    "UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED", "ABORTED",
)  # fmt: skip


class DamagedError(Exception):
    """A checkpoint that can't be read, or holds something else than was written."""


@contextlib.contextmanager
def damage() -> Iterator[None]:
    """Turns what a reader makes of a broken file into a DamagedError; others stay what they are."""
    try:
        yield
    except Exception as error:
        if _is_of_the_machine(error):
            raise
        raise DamagedError(f"it can't be read ({one_line(error)})") from error


def _is_of_the_machine(error: BaseException | None) -> bool:
    """Whether an error, or one that it comes from, says nothing of the file."""
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
    """An error's message, of a long one what matters."""
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) <= 200:
        return text
    # Of a long message, the machine's own words for what happened, and the end.
    reasons = [os.strerror(code) for code in errno.errorcode if os.strerror(code) in text]
    return f"{max(reasons, key=len, default='')} ... {text[-200:]}".lstrip()
