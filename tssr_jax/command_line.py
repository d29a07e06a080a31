"""How our programs start: flags are parsed, and errors of users become one paragraph."""

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags

from tssr_jax.errors import UserError


class _Terminated(BaseException):
    """A SIGTERM has come. Not an Exception: only what cleans up may catch it."""


def run(main: Callable[[], None]) -> None:
    """Parses the flags that are defined and calls `main`.

    A UserError gives one paragraph and exit status 1. A SIGTERM ends the program with a message,
    status 0, and nothing half-written left behind. (While a model is trained, `StopRequest` takes
    it instead, which saves.)
    """

    def terminate(*_: object) -> NoReturn:
        raise _Terminated

    def guarded(argv: Sequence[str]) -> None:
        try:
            if len(argv) > 1:
                raise UserError(f"Unexpected argument {argv[1]!r}; flags start with --.")
            signal.signal(signal.SIGTERM, terminate)
            main()
        except _Terminated:
            print("Stopped by SIGTERM. The same command goes on from what is complete.")
        except UserError as error:
            _stop(str(error))
        except OSError as error:
            _stop(f"{error}. What was complete before stays as it was.")
        except KeyboardInterrupt:
            _stop("interrupted. The same command goes on from what is complete.")

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    # ml_collections would print a stack of frames for a file that is not there.
    for flag in argv:
        path = flag.partition("=")[2].partition(":")[0]
        if flag.startswith(("--config=", "-config=")) and not Path(path).is_file():
            _stop(f"--config: there is no file {path!r}; configs/ holds those of this project.")
    try:
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        # ml_collections puts the stack of frames of what a configuration raised into the message.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        _stop(f"{lines[-1] if 'Traceback' in str(error) else ' '.join(lines)} (See --help.)")
    except (AttributeError, KeyError) as error:
        # What ml_collections raises for a field that does not exist.
        message = " ".join(str(error.args[0]).replace("'", "").split())
        _stop(f"Unknown configuration field: {message} (configs/default.py lists all fields.)")
    except (OSError, TypeError, ValueError) as error:
        _stop(f"--config can't be used: {' '.join(str(error).split())}")


def _stop(message: str) -> NoReturn:
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(1)
