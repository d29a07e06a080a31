"""Starts the programs: parses flags, and prints a UserError as one paragraph."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags
from etils import epath
from ml_collections import config_flags

from tssr_jax.config import default_config, flattened, shipped_file, shipped_names
from tssr_jax.config.fields import unknown_field
from tssr_jax.errors import EndsAllError, UserError, shown
from tssr_jax.runtime import ending_signals, leave_terminal

# After Ctrl-C: how long native code may continue, how long all else may, and how long a second
# signal counts as the first (a terminal and a program like `timeout` may both send it).
_SECONDS_IN_NATIVE_CODE, _SECONDS_OF_CLEANING_UP = 3.0, 60.0
_SECONDS_OF_ONE_CTRL_C = 0.5
_SECONDS_UNTIL_AGAIN = 0.1


class _Terminated(BaseException):
    """A SIGTERM or SIGHUP has arrived. Not an Exception, so that only clean-up code catches it."""


def config_flag() -> flags.FlagHolder[Any]:
    """Defines --config, a configuration and all its fields."""
    return config_flags.DEFINE_config_file(
        "config",
        None,
        "Configuration: a shipped one by name (ml100k, csv:FOLDER), or a file. Any field can be "
        "set, e.g. --config.model.d_model=64; tssr_jax/config/default.py lists them.",
    )


def workdir_flag() -> flags.FlagHolder[str | None]:
    """Defines --workdir, the folder of a run, a study or a search."""
    return flags.DEFINE_string(
        "workdir", None, "Folder of the run (or study, or search), here or gs://."
    )


def raw_dir_flag() -> flags.FlagHolder[str | None]:
    """Defines --raw_dir, where a run's raw files lie now."""
    return flags.DEFINE_string(
        "raw_dir", None, "Where the run's raw files lie now, if they have moved since training."
    )


def required_workdir(flag: flags.FlagHolder[str | None]) -> epath.Path:
    """The folder that --workdir names; raises UserError without one."""
    if not flag.value:
        raise UserError("--workdir=DIR is required: the folder of the run.")
    return epath.Path(flag.value).expanduser()


def required_config(flag: flags.FlagHolder[Any]) -> Any:
    """The configuration that --config names; raises UserError without one."""
    if flag.value is None:
        raise UserError(
            f"--config=NAME is required: one of {', '.join(shipped_names())}, with its argument "
            "behind a colon (csv:FOLDER), or a file."
        )
    return flag.value


def optional_path(flag: flags.FlagHolder[str | None]) -> Path | None:
    """The path that a flag names, "~" expanded; None without one."""
    return Path(flag.value).expanduser() if flag.value else None


def run(
    main: Callable[[], None], argv: Sequence[str] | None = None, *, resumable: bool = True
) -> None:
    """Parses the flags that are defined and calls `main`.

    A UserError prints one paragraph and exits with status 1. A SIGTERM (or SIGHUP) ends the program
    with a message and status 0, and leaves nothing half-written. (During training, `StopRequest`
    handles it instead, and saves.)

    Args:
      main: the program's main function.
      argv: the program's name and flags; by default `sys.argv`.
      resumable: whether the same command continues where it was stopped.
    """
    goes_on = "The same command goes on from what is complete." if resumable else ""

    def terminate(number: int, _: object) -> NoReturn:
        leave_terminal(number)
        raise _Terminated(signal.Signals(number).name)

    def guarded(argv: Sequence[str]) -> None:
        try:
            if len(argv) > 1:
                raise UserError(f"Unexpected argument {argv[1]!r}; flags start with --.")
            for number in ending_signals():
                signal.signal(number, terminate)
            interrupted = _end_soon_after_ctrl_c(goes_on)
            try:
                main()
            except Exception as error:
                if interrupted.is_set():  # libraries raise others in the place of Ctrl-C's
                    raise KeyboardInterrupt from error
                raise
        except _Terminated as ended:
            print(f"Stopped by {ended}. {goes_on}".strip())
        except EndsAllError as error:
            # Without what JAX does at an exit: it waits for the others, and then aborts.
            print(f"Error: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        except UserError as error:
            stop(str(error))
        except OSError as error:
            stop(f"{shown(error, 300)}. What was complete before stays as it was.")
        except KeyboardInterrupt:
            # Without Python's own end: a thread that compiles would crash in it.
            print(f"Error: interrupted. {goes_on}".strip(), file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(1)

    app.run(guarded, list(sys.argv if argv is None else argv), flags_parser=_parse_flags)


def _end_soon_after_ctrl_c(goes_on: str) -> threading.Event:
    """Ends the program soon after Ctrl-C, whatever it does, and at once after a second one.

    Python raises KeyboardInterrupt only when the main thread returns from native code, which may
    compile for a minute; and code that catches too much can lose it. Files are written whole or not
    at all, so ending at any moment loses no complete file.

    An ending signal that comes inside of a callback, where exceptions are lost, is sent once more.

    Returns:
      What is set when Ctrl-C has come.
    """
    noticed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        return noticed

    def interrupt(*_: object) -> NoReturn:
        noticed.set()
        raise KeyboardInterrupt

    def end() -> None:
        print(f"Error: interrupted. {goes_on}".strip(), file=sys.stderr, flush=True)
        os._exit(130)

    def end_unless_noticed() -> None:
        if not noticed.is_set():
            end()

    def later(seconds: float, ending: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, ending)
        timer.daemon = True
        timer.start()

    report = sys.unraisablehook

    def again(ignored: Any) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            later(_SECONDS_UNTIL_AGAIN, lambda: os.kill(os.getpid(), signal.SIGINT))
        elif issubclass(ignored.exc_type, _Terminated):
            number = signal.Signals[str(ignored.exc_value)]
            later(_SECONDS_UNTIL_AGAIN, lambda: os.kill(os.getpid(), number))
        else:
            report(ignored)

    sys.unraisablehook = again
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch(_: socket.socket) -> None:
        first = None
        while data := reader.recv(1):
            if data[0] != signal.SIGINT:
                continue
            if first is None:
                first = time.monotonic()
                later(_SECONDS_IN_NATIVE_CODE, end_unless_noticed)
                later(_SECONDS_OF_CLEANING_UP, end)
            elif time.monotonic() - first > _SECONDS_OF_ONE_CTRL_C:
                end()

    signal.signal(signal.SIGINT, interrupt)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    # The thread holds the writer, which would be closed otherwise.
    threading.Thread(target=watch, args=(writer,), daemon=True).start()
    return noticed


def stop(message: str) -> NoReturn:
    """Ends the program with an error of one paragraph."""
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(1)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    argv = _with_config_first(argv)
    sys.argv = argv  # where ml_collections looks for fields that are set
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        # ml_collections puts the traceback of a configuration's error into the message.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = lines[-1] if "Traceback" in str(error) else " ".join(lines)
        stop(f"{_without_class(message)} (See --help.)")
    except (AttributeError, KeyError) as error:
        # What ml_collections raises for a field that does not exist.
        stop(_unknown_field(argv) or f"--config can't be used: {shown(error)}")
    except (OSError, TypeError, ValueError) as error:
        stop(f"--config can't be used: {shown(error)}")


def _with_config_first(argv: Sequence[str]) -> list[str]:
    """Moves --config before the flags that set its fields, and replaces its name by a file."""
    rest, config = list(argv[1:]), []
    for i, flag in enumerate(rest):
        name, equals, value = flag.lstrip("-").partition("=")
        if name != "config" or not flag.startswith("-"):
            continue
        taken = 1 if equals else 2
        if not equals and i + 1 >= len(rest):
            break
        config = [f"--config={_config_file(value if equals else rest[i + 1])}"]
        del rest[i : i + taken]
        break
    return [argv[0], *config, *rest]


def _config_file(value: str) -> str:
    """A shipped configuration's name as its file; a file stays as it is."""
    path, colon, argument = value.partition(":")
    if Path(path).is_file():
        return value
    if path in shipped_names():
        return f"{shipped_file(path)}{colon}{argument}"
    stop(
        f"--config: there is neither a file {path!r} nor a configuration of this name; known: "
        f"{', '.join(shipped_names())}."
    )


def _unknown_field(argv: Sequence[str]) -> str | None:
    """An error message for the first --config.FIELD that does not exist; None if all exist."""
    known = list(flattened(default_config()))
    for flag in argv:
        name = flag.lstrip("-").partition("=")[0].removeprefix("config.")
        if flag.lstrip("-").startswith("config.") and name not in known:
            return unknown_field(name, known)
    return None


def _without_class(message: str) -> str:
    """The message of an exception as Python prints it, without the exception's name."""
    kind, colon, rest = message.partition(": ")
    return rest if colon and kind.endswith("Error") and kind.isidentifier() else message
