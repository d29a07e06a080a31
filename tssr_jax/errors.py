"""The one exception whose message is written for the person who runs the program."""

import difflib
from collections.abc import Collection
from typing import Any


class UserError(Exception):
    """Something outside the program is wrong: input, configuration, a folder, a checkpoint.

    The message says in one paragraph what was found, where, and what to do. `main` prints it
    without a stack of frames and exits with status 1.
    """


class EndsAllError(UserError):
    """The error of one of several processes that train together, after which none can go on."""


def shown(value: Any, most: int = 120) -> str:
    """Data, or the words of a library, as a message has them: in one line, cut if it is long."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The end of a sentence about a name that is not known: "; did you mean NAME?", or "."."""
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else "."


def require_utf8(path: str, flag: str) -> None:
    """Raises UserError if a path is not UTF-8, as libraries want it.

    Args:
      path: as Python has it, with surrogates for bytes that are not UTF-8.
      flag: names it.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{flag}={shown(ascii(path))} is not UTF-8. Choose a folder whose whole path is."
        ) from None
