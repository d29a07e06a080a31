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
    """What is wrong with a folder's files; None if nothing is."""
    try:
        digests = _read(folder)
    except FileNotFoundError:
        return f"{FILE} is missing; older versions wrote none"
    except (ValueError, TypeError, RecursionError):
        return f"{FILE} is not readable"
    there = _names(folder)
    if missing := sorted(digests.keys() - set(there)):
        return f"{missing[0]} is missing"
    # Systems put hidden files into folders.
    if others := [name for name in there if name not in digests and "/." not in f"/{name}"]:
        return f"{others[0]} does not belong there"
    changed = [name for name, digest in digests.items() if file_sha256(folder / name) != digest]
    return f"{changed[0]} has changed" if changed else None


def of_records(folder: Path) -> str:
    """A key of the records (TFRecord files, fields of users) in a folder, wherever it lies."""
    own = (".tfrecord-", "profiles.")
    some = {name: x for name, x in _read(folder).items() if any(part in name for part in own)}
    return hashlib.sha256(json.dumps(some, sort_keys=True).encode()).hexdigest()[:20]


def _read(folder: Path) -> dict[str, str]:
    """The digests by relative path."""
    path = folder / FILE
    digests = json.loads(path.read_text())
    if not isinstance(digests, dict):
        raise TypeError(f"{path} is no object")
    return digests


def _names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != FILE)
    return sorted(path.relative_to(folder).as_posix() for path in files)
