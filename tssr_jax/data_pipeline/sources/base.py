"""The interface of a source of interactions, and checks that all sources share."""

import dataclasses
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import ml_collections
import polars as pl
from etils import epath

from tssr_jax.data_pipeline import cache
from tssr_jax.errors import UserError

TICKS = 1_000  # ticks in a second, for stored times
_MAX_SECONDS = 2**53  # float64 holds every whole number up to here, int64 its ticks
LATEST = 60 * 2**31  # seconds; minutes of later times do not fit into an int32
# Directives of strptime for more than a day.
_HAS_TIME = re.compile(r"%[-_0]?(?:[HIklMSfTRXrspPcZz+]|[.:#\d])")
_ISO = (
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
)
_ROW = "\0row"  # no file's column is called that
_NO_ID = ("", "nan", "null", "none", "<na>")  # written by programs for a missing id


@dataclasses.dataclass(frozen=True)
class RawFiles:
    """Files of one dump, found or fetched.

    Attributes:
      origin: where they come from, for the report, e.g. "GroupLens" or a folder.
      layout: which of the source's layouts they follow.
      interactions: the file of interactions.
      items: the file of item descriptions.
      images: names of the images that lie there; None where there is no folder of images.
    """

    origin: str
    layout: str
    interactions: Path
    items: Path
    images: frozenset[str] | None = None


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

    def locate(self, data: ml_collections.ConfigDict) -> RawFiles:
        """Finds or fetches the raw files; raises UserError if it can't."""

    def interactions(self, dump: Dump) -> Iterator[pl.DataFrame]:
        """Reads all interactions, a chunk at a time.

        Yields:
          `user` and `item` (strings, never empty) and `timestamp` (int64 milliseconds).

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


_ELSEWHERE = (
    "If the files lie elsewhere, name their folder: --config.data.raw_dir, or --raw_dir to ask a "
    "run that is trained."
)


def find_files(
    data: ml_collections.ConfigDict, choices: Sequence[Sequence[str]], owner: str
) -> list[Path]:
    """Finds one file of `data.raw_dir` for each list of names: the first that exists.

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
    names = [next((n for n in some if (folder / n).is_file()), None) for some in choices]
    missing = [_either(some) for some, name in zip(choices, names, strict=True) if name is None]
    if missing:
        found = sorted(p.name for p in folder.iterdir())
        listing = ", ".join(found[:20]) + (", ..." if len(found) > 20 else "")
        raise UserError(
            f"{owner}: {folder} has no {' and no '.join(missing)} (it holds: "
            f"{listing or 'nothing'}). Put {' and '.join(map(_either, choices))} there. "
            f"{_ELSEWHERE}"
        )
    found_names = [name for name in names if name is not None]
    if "://" not in str(data.raw_dir):
        return [Path(folder / name) for name in found_names]
    key = hashlib.sha256(data.raw_dir.encode()).hexdigest()[:16]
    copies = cache.local_folder(data.cache_dir) / "downloads" / f"bucket-{key}"
    copies.mkdir(parents=True, exist_ok=True)
    return [_copy(folder / name, copies / name) for name in found_names]


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _copy(remote: epath.Path, local: Path) -> Path:
    """Copies a file if it was not copied before, or has changed since."""
    stat = remote.stat()
    there = epath.Path(local).stat() if local.is_file() else None
    if there is None or (there.length, there.mtime) != (stat.length, stat.mtime):
        part = local.with_name(f"{local.name}.part-{os.getpid()}")
        remote.copy(part, overwrite=True)
        os.utime(part, (stat.mtime, stat.mtime))
        part.replace(local)
    return local


def parse_interactions(
    chunks: Iterable[tuple[int, pl.DataFrame]],
    columns: tuple[str, str, str],
    path: Path,
    time_format: str = "",
) -> Iterator[pl.DataFrame]:
    """Parses users, items and times of a table into common columns.

    Args:
      chunks: (line number of the first row, rows).
      columns: names of the columns of users, items and times.
      path: the file they come from, for errors.
      time_format: as for `parse_timestamps`.
    """
    user, item, time = columns
    for line, table in chunks:
        yield pl.DataFrame(
            {
                "user": parse_ids(table, user, path, line),
                "item": parse_ids(table, item, path, line),
                "timestamp": parse_timestamps(table, time, path, line, time_format),
            }
        )


def parse_ids(table: pl.DataFrame, column: str, path: Path, first_line: int) -> pl.Series:
    """Stripped, non-empty strings; raises UserError with the line of the first empty one."""
    ids = table[column].cast(pl.String).str.strip_chars()
    row = _first(ids.is_null() | ids.str.to_lowercase().is_in(_NO_ID))
    if row is not None:
        found = "is empty" if not ids[row] else f"holds {ids[row]!r}, which is no id"
        raise UserError(
            f"{path}, line {row + first_line}: column {column!r} {found}. Every row needs an id; "
            "remove the row or fill it in."
        )
    return ids


def parse_timestamps(
    table: pl.DataFrame, column: str, path: Path, first_line: int, time_format: str = ""
) -> pl.Series:
    """Milliseconds since 1970 from seconds, or from ISO dates or date-times (UTC without a zone).

    Args:
      table: has the column.
      column: its name.
      path: the file it comes from, for the error.
      first_line: line number of the first row.
      time_format: strptime's format of times in another form; "" is none.

    Raises:
      UserError: if a time can't be read; names the first line and its value.
    """
    texts = table[column].cast(pl.String).str.strip_chars()
    if time_format:
        try:
            times = _from_dates(texts, [time_format])
        except pl.exceptions.PolarsError as error:
            raise UserError(
                f"--config.data.timestamp_format is {time_format!r}, which can't be read by: "
                f"{str(error).splitlines()[0]}"
            ) from error
    else:
        times = _from_seconds(texts)
    if times.null_count() and not time_format:
        times = pl.select(pl.coalesce(times, _from_dates(texts, _ISO))).to_series()
    row = _first(times.is_null())
    if row is not None:
        raise UserError(
            f"{path}, line {row + first_line}: column {column!r} holds {texts[row]!r}, which is "
            + (
                f"not of the format {time_format!r} (--config.data.timestamp_format)."
                if time_format
                else "neither a number of seconds since 1970 nor a date like 2024-01-31, "
                "2024-01-31 23:59:59 or 2024-01-31T23:59:59+02:00. "
                "--config.data.timestamp_format names another format."
            )
        )
    return times


def _from_seconds(texts: pl.Series) -> pl.Series:
    whole, numbers = (texts.cast(kind, strict=False) for kind in (pl.Int64, pl.Float64))
    # Numbers that are not written as whole numbers ("1.5", "1e9") are read as floats. (They are
    # rounded to the microsecond first: .123 as a float may be slightly less.)
    cut = ((numbers.fill_nan(None) * 1e6).round() / (1_000_000 // TICKS)).floor()
    fits = (numbers.abs() < _MAX_SECONDS).fill_null(False)
    return pl.select(
        pl.when(fits).then(pl.coalesce(whole * TICKS, cut.cast(pl.Int64, strict=False)))
    ).to_series()


def _from_dates(texts: pl.Series, formats: Sequence[str]) -> pl.Series:
    # Few distinct dates stand for many rows: each is parsed once.
    distinct = texts.unique()
    parsed = [
        (
            distinct.str.to_datetime(form, strict=False, time_unit="us")
            if _HAS_TIME.search(form)
            else distinct.str.to_date(form, strict=False).cast(pl.Datetime("us"))
        ).dt.replace_time_zone(None)  # polars has brought zones to UTC
        for form in formats
    ]
    times = pl.select(pl.coalesce(parsed).dt.epoch("ms")).to_series()
    table = pl.DataFrame({"text": distinct, "time": times})
    rows = pl.DataFrame({"text": texts})
    return rows.join(table, on="text", how="left", maintain_order="left")["time"]


def unique_items(items: pl.DataFrame, dump: Dump, lines: Sequence[int]) -> pl.DataFrame:
    """Keeps one row for each item, and counts the others.

    Args:
      items: column `item`, and fields.
      dump: names the file, says what happens to rows that disagree (`data.repeated_items`), and
        gets the counts "item_rows_repeated" and "item_rows_that_disagree".
      lines: line number of each row.

    Raises:
      UserError: if two rows describe one item differently and `data.repeated_items` is "error".
    """
    numbered = items.with_row_index(_ROW)
    distinct = numbered.unique(items.columns, keep="first", maintain_order=True)
    clash = distinct.filter(pl.col("item").is_duplicated())
    dump.counts["item_rows_repeated"] += items.height - distinct.height
    if clash.height and dump.data.repeated_items == "error":
        first, second = clash.filter(pl.col("item") == clash["item"][0]).rows(named=True)[:2]
        field = next(name for name in items.columns if first[name] != second[name])
        raise UserError(
            f"{dump.files.items}: item {first['item']!r} is described differently in lines "
            f"{lines[first[_ROW]]} and {lines[second[_ROW]]} ({field}: "
            f"{first[field]!r} and {second[field]!r}). Keep one row for each item, or set "
            "--config.data.repeated_items=first."
        )
    kept = distinct.unique("item", keep="first", maintain_order=True)
    dump.counts["item_rows_that_disagree"] += distinct.height - kept.height
    return kept.drop(_ROW)


def _first(flags: pl.Series) -> int | None:
    index = flags.arg_true()
    return int(index[0]) if len(index) else None
