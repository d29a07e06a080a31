"""Runs the service: `tssr serve`."""

import socket
import threading
import time
import webbrowser

import uvicorn
from etils import epath

from tssr_jax.errors import UserError
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.reporting import make_console
from tssr_jax.serving.app import create_app
from tssr_jax.serving.service import Limits

_LAST_SECONDS = 30
# Length of the lists that are compiled before the first request, as the page asks for.
_WARM_UP = 10


def run_serve(
    workdir: epath.Path,
    host: str,
    port: int,
    limits: Limits,
    *,
    open_page: bool = False,
    raw_dir: str | None = None,
) -> None:
    """Serves a run until a SIGTERM (or Ctrl-C); open requests are still answered.

    Args:
      workdir: the run's folder.
      host: the address to listen at.
      port: the port to listen at.
      limits: sizes, concurrency, time.
      open_page: open the page in this machine's browser once the service answers.
      raw_dir: see `Recommender.from_workdir`.

    Raises:
      UserError: if there is no such run, or the port is taken.
    """
    console = make_console()
    _require_free(host, port)
    recommender = Recommender.from_workdir(workdir, raw_dir=raw_dir)
    console.print("Compiling ...")
    recommender.warm_up(min(_WARM_UP, len(recommender.items.ids)), limits.most_at_once)
    where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    console.print(f"{workdir} at {where}, its description at {where}/docs. Ctrl-C ends it.")
    if open_page:
        threading.Thread(target=_open_page, args=(host, port, where), daemon=True).start()
    uvicorn.run(
        create_app(recommender, str(workdir), limits),
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=_LAST_SECONDS,
    )


def _require_free(host: str, port: int) -> None:
    """Raises UserError at once, rather than when everything is loaded and compiled."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise UserError(
            f"{host}:{port} can't be listened at ({error.strerror}): choose another --port."
        ) from error


def _open_page(host: str, port: int, where: str) -> None:
    """Waits for the service (it may never come: a port that is taken ends the program)."""
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            webbrowser.open(where)
            return
