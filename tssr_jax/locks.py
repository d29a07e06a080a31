"""One writer: the folder of a run, a study or a search is locked while a process writes to it.

On a disk the system holds the lock (flock), and releases it when the process ends, however it
ends. In a bucket, and where a disk has no locks, it is a lease: a file that its holder renews each
minute, and that counts no more after five minutes without.
"""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from tssr_jax.errors import UserError, require_utf8

FILE = "writer.lock"
RENEWED_AFTER, STALE_AFTER = 60.0, 300.0  # seconds
# Another process that took a lease at the same moment has written it by then.
_SETTLED_AFTER = 1.0


@contextlib.contextmanager
def one_writer(folder: epath.Path) -> Iterator[None]:
    """Locks a folder, which is made if it does not exist.

    Raises:
      UserError: if another process has locked it; names its machine and number. Or if its path has
        a character that checkpoints can't have.
    """
    require_plain(folder)
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    held = _lease(folder / FILE) if "://" in str(folder) else _flock(folder / FILE)
    try:
        with held:
            yield
    finally:
        if new and "://" not in str(folder):
            with contextlib.suppress(OSError):  # unless nothing was written
                Path(folder).rmdir()


def require_no_writer(folder: epath.Path) -> None:
    """Raises UserError as `one_writer` would. It takes no lock itself."""
    require_plain(folder)
    path = folder / FILE
    if not path.exists():
        return
    if "://" in str(folder):
        _require_stale(path)
        return
    with contextlib.suppress(FileNotFoundError), Path(path).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refused(path, _read(path)) from None
        except OSError:
            _require_stale(path)


def require_plain(folder: epath.Path) -> None:
    """Raises UserError if a run's folder has a name by which checkpoints can't be read."""
    require_utf8(str(folder), "--workdir")
    # Orbax takes these for patterns of paths.
    found = [character for character in "[]\\" if character in str(folder.absolute())]
    if found:
        raise UserError(
            f"{folder} has a {found[0]!r}: checkpoints can't be read there. Choose another "
            "--workdir; rename the folder if the run is there already."
        )


@contextlib.contextmanager
def _flock(path: epath.Path) -> Iterator[None]:
    try:
        file = _open_locked(Path(path))
    except (PermissionError, IsADirectoryError):
        raise
    except OSError:
        file = -1
    if file < 0:  # the disk has no locks
        with _lease(path):
            yield
        return
    try:
        os.ftruncate(file, 0)
        os.write(file, json.dumps(_self()).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _open_locked(path: Path) -> int:
    """Opens and locks a file; it may be removed by its last holder in between."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(file).st_ino == path.stat().st_ino:
                return file
            os.close(file)
        except BlockingIOError:
            os.close(file)
            raise _refused(epath.Path(path), _read(epath.Path(path))) from None
        except OSError:
            os.close(file)
            raise


@contextlib.contextmanager
def _lease(path: epath.Path) -> Iterator[None]:
    _require_stale(path)
    own = _self() | {"token": uuid.uuid4().hex}
    path.write_text(json.dumps(own | {"renewed": time.time()}))
    time.sleep(_SETTLED_AFTER)
    if _read(path).get("token") != own["token"]:
        raise _refused(path, _read(path))
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEWED_AFTER):
            path.write_text(json.dumps(own | {"renewed": time.time()}))

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if _read(path).get("token") == own["token"]:
            path.unlink(missing_ok=True)


def _require_stale(path: epath.Path) -> None:
    holder = _read(path)
    if time.time() - holder.get("renewed", 0.0) < STALE_AFTER:
        raise _refused(path, holder)


def _self() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": now}


def _read(path: epath.Path) -> dict[str, Any]:
    """What a lock's holder wrote; {} if there is none, or it is being written."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _refused(path: epath.Path, holder: dict[str, Any]) -> UserError:
    who = "another process"
    if holder:
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    wait = ""
    if "renewed" in holder:
        wait = f" If it is gone, its lock ends {STALE_AFTER / 60:.0f} minutes after its last sign."
    return UserError(
        f"{path.parent} is in use: {who} writes to it. Wait until it ends, or choose another "
        f"--workdir.{wait}"
    )
