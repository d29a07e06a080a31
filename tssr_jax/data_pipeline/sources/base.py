"""The interface of a source of interactions, and how it finds its files."""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import ml_collections
import polars as pl
from etils import epath

from tssr_jax.data_pipeline import cache
from tssr_jax.errors import UserError, shown


@dataclasses.dataclass(frozen=True)
class RawFiles:
    """Files of one dump, found or fetched.

    Attributes:
      origin: where they come from, for the report, e.g. "GroupLens" or a folder.
      layout: which of the source's layouts they follow.
      interactions: the file of interactions, or a folder of such files, see `part_files`.
      items: the file of item descriptions.
      images: names of the images that lie there; None where there is no folder of images.
      users: the file of users; None if it is not asked for (`data.user_fields`).
    """

    origin: str
    layout: str
    interactions: Path
    items: Path
    images: frozenset[str] | None = None
    users: Path | None = None


class Dump(NamedTuple):
    """Arguments of a source's readers.

    Attributes:
      files: from `locate`.
      data: section `data` of the config.
      counts: the reader adds its counts for the report here.
    """

    files: RawFiles
    data: ml_collections.ConfigDict
    counts: Counter[str]


class Source(Protocol):
    """A raw dump format."""

    @property
    def version(self) -> int:
        """Increased when the reader's output changes, so that data is prepared again."""

    @property
    def more(self) -> tuple[str, ...]:
        """Which of `event` and `weight` its interactions can have; `users` if it tells of them."""

    def locate(self, data: ml_collections.ConfigDict) -> RawFiles:
        """Finds or fetches the raw files; raises UserError if it can't."""

    def interactions(self, dump: Dump) -> Iterator[pl.DataFrame]:
        """Reads all interactions, a chunk at a time.

        Yields:
          `user` and `item` (strings, never empty) and `timestamp` (int64 milliseconds); as the
          config asks also `event` (strings, never empty) and `weight` (float32, from 0 on).

        Raises:
          UserError: if something is malformed; names file and line.
        """

    def items(self, dump: Dump, wanted: pl.Series) -> pl.DataFrame:
        """Reads the items' descriptions.

        Args:
          dump: see `Dump`.
          wanted: ids of the catalogue; other items may be left out.

        Returns:
          Columns `item` (unique) and the source's fields, `data.text_fields` among them (strings,
          null where empty). If the source has images, also `image` (a path below the folder of raw
          files, or a URL).

        Raises:
          UserError: as for `interactions`.
        """


class SourceWithUsers(Protocol):
    """A raw dump format that tells of users: one with `users` in `more`."""

    def users(self, dump: Dump) -> pl.DataFrame:
        """Reads the fields `data.user_fields` of the users.

        Returns:
          Columns `user` (unique) and the fields, strings, null where empty.

        Raises:
          UserError: as `users.read_users` does.
        """


_ELSEWHERE = (
    "If the files lie elsewhere, name their folder: --config.data.raw_dir, or --raw_dir for a "
    "trained run."
)


def find_files(
    data: ml_collections.ConfigDict, choices: Sequence[Sequence[str]], owner: str
) -> list[Path]:
    """Finds one file of `data.raw_dir` for each list of names: the first that exists.

    Names that end in "/" are those of folders.

    Files in a bucket (gs://) are copied to the cache.

    Raises:
      UserError: if a file is missing; it lists what is there and what is not.
    """
    if not data.raw_dir:
        raise UserError(
            f"{owner} needs a folder: --config.data.raw_dir=FOLDER with "
            f"{' and '.join(_either(names) for names in choices)}."
        )
    folder = epath.Path(data.raw_dir).expanduser()
    if not folder.is_dir():
        raise UserError(f"{owner}: there is no folder {folder}. {_ELSEWHERE}")
    there = [[n for n in some if _is_there(folder, n)] for some in choices]
    names = [some[0] if some else None for some in there]
    for some in there:
        if len(some) > 1:
            print(f"{folder} has {' and '.join(some)}: {some[0]} is read.", flush=True)
    missing = [_either(some) for some, name in zip(choices, names, strict=True) if name is None]
    if missing:
        found = sorted(p.name for p in folder.iterdir())
        listing = ", ".join(found[:20]) + (", ..." if len(found) > 20 else "")
        raise UserError(
            f"{owner}: {folder} has no {' and no '.join(missing)} (it holds: "
            f"{shown(listing, 300) or 'nothing'}). Put {' and '.join(map(_either, choices))} "
            f"there. {_ELSEWHERE}"
        )
    found_names = [name for name in names if name is not None]
    if "://" not in str(data.raw_dir):
        return [Path(folder / name) for name in found_names]
    key = hashlib.sha256(data.raw_dir.encode()).hexdigest()[:16]
    copies = cache.local_folder(data.cache_dir) / "downloads" / f"bucket-{key}"
    copies.mkdir(parents=True, exist_ok=True)
    return [_copy(folder / name, copies / name) for name in found_names]


def _is_there(folder: epath.Path, name: str) -> bool:
    path = folder / name
    return path.is_dir() if name.endswith("/") else path.is_file()


def part_files(path: Path) -> list[Path]:
    """The file itself; or the files of a folder, in the order of their names.

    What begins with "." or "_" is left out: Spark and others write such.

    Raises:
      UserError: if the folder has a folder, or no file.
    """
    if path.is_file():
        return [path]
    found = sorted(p for p in path.iterdir() if p.name[0] not in "._")
    for below in found:
        if below.is_dir():
            raise UserError(
                f"{path} has a folder, {below.name}: put all files of interactions beside each "
                "other."
            )
    if not found:
        raise UserError(f"{path} is a folder without files of interactions.")
    return found


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _copy(remote: epath.Path, local: Path) -> Path:
    """Copies a file, or the files of a folder, if not copied before, or changed since."""
    if remote.is_dir():
        local.mkdir(exist_ok=True)
        names = {path.name for path in remote.iterdir() if path.is_file()}
        for gone in (path for path in local.iterdir() if path.name not in names):
            gone.unlink()
        for name in names:
            _copy(remote / name, local / name)
        return local
    stat = remote.stat()
    there = epath.Path(local).stat() if local.is_file() else None
    if there is None or (there.length, there.mtime) != (stat.length, stat.mtime):
        part = local.with_name(f"{local.name}.part-{os.getpid()}")
        remote.copy(part, overwrite=True)
        os.utime(part, (stat.mtime, stat.mtime))
        part.replace(local)
    return local
