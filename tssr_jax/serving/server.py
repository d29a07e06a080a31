"""Runs the service: `tssr serve`."""

import asyncio
import socket
import threading
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from etils import epath
from uvicorn.protocols.http.h11_impl import H11Protocol

from tssr_jax.errors import UserError
from tssr_jax.recommending.index import IndexedRecommender
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.reporting import make_console
from tssr_jax.serving.app import create_app
from tssr_jax.serving.schemas import MOST_HISTORIES
from tssr_jax.serving.service import Limits

_LAST_SECONDS = 30
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run_serve(
    workdir: epath.Path,
    host: str,
    port: int,
    limits: Limits,
    *,
    examples: bool = False,
    index: Path | None = None,
    open_page: bool = False,
    raw_dir: str | None = None,
) -> None:
    """Serves a run until a SIGTERM (or Ctrl-C); open requests are still answered.

    Args:
      workdir: the run's folder.
      host: the address to listen at.
      port: the port to listen at.
      limits: sizes, concurrency, time.
      examples: show histories of the data.
      index: folder of an index, see `recommending.index`; None scores all items.
      open_page: open the page in this machine's browser once the service answers.
      raw_dir: see `Recommender.from_workdir`.

    Raises:
      UserError: if there is no such run, or the port is taken.
    """
    console = make_console()
    _require_free(host, port)
    kind = Recommender if index is None else IndexedRecommender
    recommender = kind.from_workdir(workdir, raw_dir=raw_dir, batch_size=MOST_HISTORIES)
    if index is not None:
        assert isinstance(recommender, IndexedRecommender)
        recommender.use(index)
    if host not in _LOOPBACK:
        console.print(
            f"Anyone who reaches {host} may ask this service: it knows no users and no passwords. "
            "Put a proxy that does in front of it."
        )
    console.print("Compiling ...")
    recommender.warm_up()
    where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    console.print(f"{workdir} at {where}, its description at {where}/docs. Ctrl-C ends it.")
    if open_page:
        threading.Thread(target=_open_page, args=(host, port, where), daemon=True).start()
    uvicorn.run(
        create_app(recommender, str(workdir), limits, examples=examples),
        host=host,
        port=port,
        log_level="warning",
        http=TimedHeads,
        timeout_graceful_shutdown=_LAST_SECONDS,
    )


def allowed_hosts(host: str, asked: Sequence[str] | None) -> tuple[str, ...]:
    """Names that requests may have in their header Host.

    A page of elsewhere that a browser here opens may give its own name this machine's address
    (DNS rebinding). So a service for this machine alone answers to the machine's names only.

    Args:
      host: the address that is listened at.
      asked: --allowed_hosts; None if it is not set.
    """
    if asked:
        return tuple(asked)
    # Versions of Starlette have one of these for the name of [::1]:8000.
    return (*_LOOPBACK, "[::1]", "[") if host in _LOOPBACK else ("*",)


def shows_examples(host: str, names: Sequence[str] | None, asked: bool | None) -> bool:
    """Whether anyone who asks is shown histories of the data: by default on this machine only.

    Args:
      host: the address that is listened at.
      names: --allowed_hosts; None if it is not set. Otherwise others ask, maybe through a proxy.
      asked: --examples; None if it is not set.
    """
    return host in _LOOPBACK and not names if asked is None else asked


class TimedHeads(H11Protocol):
    """Closes connections that send no whole head of a request, or read no answer, in time.

    (`limits.Timeout` begins where a head has ended.)
    """

    seconds = 10.0
    _timer: asyncio.TimerHandle | None = None
    _unread = 0  # bytes of answers that were not read when the time was up

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the time of the first head."""
        super().connection_made(transport)
        self._start()

    def on_response_complete(self) -> None:
        """Starts the time of the next head."""
        super().on_response_complete()
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the time."""
        super().connection_lost(exc)
        if self._timer:
            self._timer.cancel()

    def _start(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(self.seconds, self._end)

    def _end(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        before, self._unread = self._unread, self.transport.get_write_buffer_size()
        if self._unread and self._unread == before:
            self.transport.abort()  # to close it would wait until all is read
        elif self._unread:
            self._start()
        elif not answering and not self.transport.is_closing():
            self.transport.close()


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
