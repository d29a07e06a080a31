"""The cache of prepared data, features and downloads: a local folder, maybe shared by a bucket.

`config.data.cache_dir` may be a bucket (gs://...): what is prepared is then kept there as well, and
every host copies it to its disk instead of preparing it again. Downloads stay local.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
from etils import epath

_LOCAL = "~/.cache/tssr_jax"


def local_folder(cache_dir: str) -> Path:
    """Where things lie on this machine."""
    if not _is_remote(cache_dir):
        return Path(cache_dir).expanduser()
    key = hashlib.sha256(cache_dir.encode()).hexdigest()[:16]
    return Path(_LOCAL).expanduser() / f"bucket-{key}"


def find(cache_dir: str, name: str) -> Path | None:
    """A file or folder of the cache, copied from the bucket if it is only there; else None."""
    local = local_folder(cache_dir) / name
    if not local.exists() and _is_remote(cache_dir):
        remote = epath.Path(cache_dir) / name
        if remote.exists():
            _copy(remote, epath.Path(local))
    return local if local.exists() else None


def share(cache_dir: str, name: str) -> None:
    """Copies a new file or folder of the cache to the bucket, if there is one."""
    if _is_remote(cache_dir):
        _copy(epath.Path(local_folder(cache_dir) / name), epath.Path(cache_dir) / name)


def save_array(cache_dir: str, name: str, array: np.ndarray) -> None:
    """Writes an array to the cache (.npy), whole or not at all."""
    path = local_folder(cache_dir) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.incomplete-{os.getpid()}")
    with part.open("wb") as file:
        np.save(file, array)
    part.replace(path)
    share(cache_dir, name)


def _is_remote(cache_dir: str) -> bool:
    return "://" in cache_dir


def _copy(source: epath.Path, target: epath.Path) -> None:
    """Copies beside the target and renames, so that others see all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.incomplete-{os.getpid()}")
    if part.exists():
        part.rmtree()
    _copy_tree(source, part)
    if target.exists():  # another process was faster; its result is the same
        part.rmtree() if part.is_dir() else part.unlink()
    else:
        part.rename(target)


def _copy_tree(source: epath.Path, target: epath.Path) -> None:
    if not source.is_dir():
        source.copy(target)
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        _copy_tree(path, target / path.name)
