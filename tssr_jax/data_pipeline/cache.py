"""The cache of prepared data, features and downloads: a local folder, maybe shared by a bucket.

`config.data.cache_dir` may be a bucket (gs://...). Prepared data is then also stored there, and
every host copies it to its disk instead of preparing it again. Downloads stay local.
"""

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from pathlib import Path

import numpy as np
from etils import epath

from tssr_jax.data_pipeline import digests

_LOCAL = "~/.cache/tssr_jax"
_DIGEST_BYTES = 32
_DAY = 86_400.0  # seconds
_PART_BYTES = 2**24


def local_folder(cache_dir: str) -> Path:
    """The cache's folder on this machine."""
    if not _is_remote(cache_dir):
        return Path(cache_dir).expanduser()
    key = hashlib.sha256(cache_dir.encode()).hexdigest()[:16]
    return Path(_LOCAL).expanduser() / f"bucket-{key}"


def can_be_written(cache_dir: str) -> bool:
    """Whether the cache's folder on this machine can be written, or made."""
    folder = local_folder(cache_dir)
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def find(cache_dir: str, name: str) -> Path | None:
    """A file or folder of the cache, copied from the bucket if it is only there; else None."""
    local = local_folder(cache_dir) / name
    if not local.exists() and _is_remote(cache_dir) and _marker(cache_dir, name).exists():
        _fetch(epath.Path(cache_dir) / name, local)
    return local if local.exists() else None


def find_folder(cache_dir: str, name: str) -> Path | None:
    """A folder of the cache whose files match their digests; a damaged one is removed."""
    folder = find(cache_dir, name)
    reason = digests.damage(folder) if folder else None
    if reason:
        _discard(cache_dir, name, reason)
        return None
    return folder


def find_array(cache_dir: str, name: str) -> np.ndarray | None:
    """An array that `save_array` wrote; a damaged one is removed."""
    path = find(cache_dir, name)
    if path is None:
        return None
    with path.open("rb") as file:
        left, digest = max(0, path.stat().st_size - _DIGEST_BYTES), hashlib.sha256()
        while part := file.read(min(left, _PART_BYTES)):
            digest.update(part)
            left -= len(part)
        if file.read() != digest.digest():
            _discard(
                cache_dir, name, "its digest is another, or missing: older versions wrote none"
            )
            return None
        file.seek(0)
        array: np.ndarray = np.load(file)
    return array


def _discard(cache_dir: str, name: str, reason: str) -> None:
    path = local_folder(cache_dir) / name
    print(f"{path} is damaged ({reason}): it is made again.", flush=True)
    if _is_remote(cache_dir):
        _marker(cache_dir, name).unlink(missing_ok=True)
    aside = incomplete(path)  # another process may read or discard it, too
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()


def share(cache_dir: str, name: str) -> None:
    """Copies a file or folder of the cache to the bucket, if there is one that lacks it."""
    if _is_remote(cache_dir) and not (marker := _marker(cache_dir, name)).exists():
        copy_tree(epath.Path(local_folder(cache_dir) / name), epath.Path(cache_dir) / name)
        marker.write_text("")


def incomplete(path: Path) -> Path:
    """A new temporary path in the folder of a path.

    It is random: process ids are not unique among containers, or hosts that share a cache.
    """
    return path.with_name(f"{path.name}.incomplete-{uuid.uuid4().hex[:12]}")


def remove_leftovers(cache_dir: str) -> None:
    """Removes what killed processes left incomplete more than a day ago."""
    for path in local_folder(cache_dir).glob("*/*incomplete-*"):
        with contextlib.suppress(OSError):  # another process removes it, too
            if time.time() - path.stat().st_mtime > _DAY:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def save_array(cache_dir: str, name: str, array: np.ndarray) -> None:
    """Writes an array to the cache (.npy, then its SHA-256), whole or not at all."""
    path = local_folder(cache_dir) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    part = incomplete(path)
    with part.open("w+b") as file:
        np.save(file, array)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").digest()
        file.write(digest)
    part.replace(path)
    share(cache_dir, name)


def _is_remote(cache_dir: str) -> bool:
    return "://" in cache_dir


def _marker(cache_dir: str, name: str) -> epath.Path:
    """The file that marks a complete copy: buckets can't rename a folder atomically."""
    return epath.Path(cache_dir) / f"{name}.whole"


def _fetch(source: epath.Path, target: Path) -> None:
    """Copies to a temporary path and renames it, so that others see all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = incomplete(target)
    try:
        copy_tree(source, epath.Path(part))
        if not target.exists():  # else another process was faster; its result is the same
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)


def copy_of(cache_dir: str, folder: epath.Path, contents: str) -> Path:
    """A local copy of a folder of a bucket, made once for these contents."""
    key = hashlib.sha256(contents.encode()).hexdigest()[:16]
    local = local_folder(cache_dir) / "runs" / key
    if not local.exists():
        _fetch(folder, local)
    return local


def copy_tree(source: epath.Path, target: epath.Path) -> None:
    """Copies a file, or a folder with all that is below it; either may be in a bucket."""
    if not source.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.copy(target, overwrite=True)
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        copy_tree(path, target / path.name)
