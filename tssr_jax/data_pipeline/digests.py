"""Digests of a folder's files, written last: whole folders are told from damaged ones."""

import hashlib
import json
from pathlib import Path

from tssr_jax.data_pipeline.fetching import file_sha256

FILE = "digests.json"


def write(folder: Path) -> None:
    """Writes the SHA-256 of all files below a folder, by their relative paths."""
    digests = {name: file_sha256(folder / name) for name in _names(folder)}
    (folder / FILE).write_text(json.dumps(digests, indent=2) + "\n")


def damage(folder: Path) -> str | None:
    """What is wrong with a folder's files; None if nothing is, or if it has no digests.

    (Folders of older versions have none.)
    """
    try:
        digests = read(folder)
    except (ValueError, TypeError):
        return f"{FILE} is not readable"
    if digests is None:
        return None
    missing = sorted(digests.keys() - set(_names(folder)))
    if missing:
        return f"{missing[0]} is missing"
    changed = [name for name, digest in digests.items() if file_sha256(folder / name) != digest]
    return f"{changed[0]} has changed" if changed else None


def read(folder: Path) -> dict[str, str] | None:
    """The digests by relative path; None if the folder has none."""
    path = folder / FILE
    if not path.is_file():
        return None
    digests = json.loads(path.read_text())
    if not isinstance(digests, dict):
        raise TypeError(f"{path} is no object")
    return digests


def of_records(folder: Path) -> str:
    """A key of the records (TFRecord files) in a folder, wherever it lies."""
    digests = read(folder) or {name: file_sha256(folder / name) for name in _names(folder)}
    some = {name: digest for name, digest in digests.items() if ".tfrecord-" in name}
    return hashlib.sha256(json.dumps(some, sort_keys=True).encode()).hexdigest()[:20]


def _names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != FILE)
    return sorted(path.relative_to(folder).as_posix() for path in files)
