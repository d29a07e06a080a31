"""What every source of interactions provides, and the checks that they share."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import ml_collections
import polars as pl
from etils import epath

from tssr_jax.errors import UserError

_MAX_SECONDS = 2**53  # float64 holds every whole number up to here


@dataclasses.dataclass(frozen=True)
class RawFiles:
    """Files of one dump, found or fetched.

    Attributes:
      origin: where they come from, for the report, e.g. "GroupLens" or a folder.
      layout: which of the source's layouts they follow.
      interactions: the file of interactions.
      items: the file of item descriptions.
    """

    origin: str
    layout: str
    interactions: Path
    items: Path


@dataclasses.dataclass(frozen=True)
class RawData:
    """One dump in common columns, nothing filtered yet.

    Attributes:
      interactions: `user` and `item` (strings, never empty), `timestamp` (int64 seconds); one row
        for each row of the file.
      items: `item` (unique), `title`, `text` (strings, maybe empty).
      counts: what the reader noticed, for the report.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    counts: dict[str, int]


class Source(Protocol):
    """A raw dump format."""

    @property
    def version(self) -> int:
        """Raised when the reader's output changes, so that prepared data is made anew."""

    def locate(self, data: ml_collections.ConfigDict) -> RawFiles:
        """Finds or fetches the raw files; raises UserError if it can't."""

    def read(self, files: RawFiles, data: ml_collections.ConfigDict) -> RawData:
        """Reads the raw files; raises UserError naming file and line of what is malformed."""


def require_files(data: ml_collections.ConfigDict, names: Sequence[str], owner: str) -> list[Path]:
    """Paths of `names` in `data.raw_dir`; those of a bucket (gs://) are copied to the cache.

    Raises:
      UserError: if a file is missing; it lists what is there and what is not.
    """
    folder = epath.Path(data.raw_dir).expanduser()
    if not folder.is_dir():
        raise UserError(f"{owner}: there is no folder {folder}.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        found = sorted(p.name for p in folder.iterdir())
        listing = ", ".join(found[:20]) + (", ..." if len(found) > 20 else "")
        raise UserError(
            f"{owner}: {folder} has no {' and no '.join(missing)} (it holds: "
            f"{listing or 'nothing'}). Put {', '.join(names)} there, or name another folder."
        )
    if "://" not in data.raw_dir:
        return [Path(folder / name) for name in names]
    key = hashlib.sha256(data.raw_dir.encode()).hexdigest()[:16]
    copies = Path(data.cache_dir).expanduser() / "downloads" / f"bucket-{key}"
    copies.mkdir(parents=True, exist_ok=True)
    return [_copy(folder / name, copies / name) for name in names]


def _copy(remote: epath.Path, local: Path) -> Path:
    """Copies a file that is not there yet, or has changed since."""
    stat = remote.stat()
    there = epath.Path(local).stat() if local.is_file() else None
    if there is None or (there.length, there.mtime) != (stat.length, stat.mtime):
        part = local.with_name(f"{local.name}.part-{os.getpid()}")
        remote.copy(part, overwrite=True)
        os.utime(part, (stat.mtime, stat.mtime))
        part.replace(local)
    return local


def read_table(
    path: Path,
    separator: str = ",",
    *,
    columns: Sequence[str] | None = None,
    encoding: str = "utf8",
    quoted: bool = True,
) -> pl.DataFrame:
    """Reads a delimited file with all columns as strings.

    Args:
      path: the file.
      separator: one character.
      columns: names for a file without a header; None reads the header line.
      encoding: "utf8", or a Python codec such as "latin-1".
      quoted: whether double quotes enclose fields.

    Raises:
      UserError: if the file is empty, or not a table in that encoding.
    """
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty.")
    try:
        table = pl.read_csv(
            path,
            separator=separator,
            has_header=columns is None,
            new_columns=columns,
            infer_schema=False,
            encoding=encoding,
            quote_char='"' if quoted else None,
        )
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} is not a readable table: {reason}") from error
    if table.is_empty():
        raise UserError(f"{path} has a header but no rows.")
    return table


def require_columns(table: pl.DataFrame, names: Sequence[str], path: Path, hint: str) -> None:
    """Raises UserError if a column is missing, naming those that are there."""
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(map(repr, missing))}; its header line names "
            f"{', '.join(map(repr, table.columns))}. {hint}"
        )


def parse_ids(table: pl.DataFrame, column: str, path: Path, first_line: int) -> pl.Series:
    """Stripped, non-empty strings; raises UserError with the line of the first empty one."""
    ids = table[column].cast(pl.String).str.strip_chars()
    row = _first(ids.is_null() | (ids == ""))
    if row is not None:
        raise UserError(
            f"{path}, line {row + first_line}: column {column!r} is empty. Every row needs an id; "
            "remove the row or fill it in."
        )
    return ids


def parse_timestamps(table: pl.DataFrame, column: str, path: Path, first_line: int) -> pl.Series:
    """Seconds since 1970 from numbers, or from ISO dates or date-times (taken as UTC).

    Raises:
      UserError: with the line and the value of the first that is neither.
    """
    texts = table[column].cast(pl.String).str.strip_chars()
    seconds = texts.cast(pl.Float64, strict=False).fill_nan(None)
    fits = (seconds.abs() < _MAX_SECONDS).fill_null(False)
    seconds = pl.select(pl.when(fits).then(seconds)).to_series().cast(pl.Int64)
    if seconds.null_count():
        dates = pl.select(
            pl.coalesce(
                texts.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us"),
                texts.str.to_datetime("%Y-%m-%dT%H:%M:%S", strict=False, time_unit="us"),
                texts.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")),
            ).dt.epoch("s")
        ).to_series()
        seconds = pl.select(pl.coalesce(seconds, dates)).to_series()
    row = _first(seconds.is_null())
    if row is not None:
        raise UserError(
            f"{path}, line {row + first_line}: column {column!r} holds {texts[row]!r}, which is "
            "neither a number of seconds since 1970 nor a date like 2024-01-31 or "
            "2024-01-31 23:59:59."
        )
    return seconds


def unique_items(items: pl.DataFrame, path: Path, first_line: int) -> tuple[pl.DataFrame, int]:
    """Drops repeated identical item rows and returns how many.

    Args:
      items: columns `item`, `title`, `text`.
      path: the file they come from, for the error.
      first_line: line number of the first row.

    Raises:
      UserError: if two rows describe one item differently.
    """
    numbered = items.with_row_index("row")
    distinct = numbered.unique(["item", "title", "text"], keep="first", maintain_order=True)
    clash = distinct.filter(pl.col("item").is_duplicated())
    if not clash.is_empty():
        first = clash.filter(pl.col("item") == clash["item"][0])
        lines = " and ".join(str(row + first_line) for row in first["row"][:2])
        texts = " and ".join(repr(text) for text in first["text"][:2])
        raise UserError(
            f"{path}: item {clash['item'][0]!r} is described differently in lines {lines} "
            f"({texts}). Keep one row for each item."
        )
    return distinct.drop("row"), items.height - distinct.height


def _first(flags: pl.Series) -> int | None:
    index = flags.arg_true()
    return int(index[0]) if len(index) else None
