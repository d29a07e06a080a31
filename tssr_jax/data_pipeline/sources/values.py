"""Ids and times of tables, checked and brought into one form."""

import contextlib
import datetime
import numbers
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from tssr_jax.data_pipeline.sources.delimited import Chunk
from tssr_jax.data_pipeline.sources.ids import WHITE_SPACE
from tssr_jax.errors import UserError, shown

TICKS = 1_000  # ticks in a second, for stored times
_MAX_SECONDS = 2**53  # float64 holds every whole number up to here, int64 its ticks
# `data.timestamp_format`: numbers are places in an order. A minute lies between two, since items of
# one minute have no order.
ORDER = "order"
_A_PLACE = 60 * TICKS
LATEST = 60 * 2**31  # seconds; minutes of later times do not fit into an int32
_YEAR = 366 * 86_400  # seconds
_ISO = (
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_FLAG = "--config.data.timestamp_format"
_MILLISECOND = datetime.timedelta(milliseconds=1)
# Parts of formats of `datetime.strptime` that polars reads alike, as patterns of what both accept.
# (In polars %f counts nanoseconds, and %y begins with another year.)
_ALIKE = {
    "%Y": "[0-9]{4}",
    **dict.fromkeys(("%m", "%d", "%H", "%M", "%S"), "[0-9]{2}"),
    ".%f": r"\.[0-9]{1,6}",
}
_PART = re.compile(r"\.%f|%.?|[^%]")
_NO_ID = ("", "nan", "null", "none", "<na>")  # written by programs for a missing id
_WHOLE = re.compile(r"^(-?[0-9]+)\.0+$")


class Columns(NamedTuple):
    """Names of a table's columns; "" where it has none, or none is read."""

    user: str
    item: str
    timestamp: str
    event: str = ""
    weight: str = ""

    @property
    def needed(self) -> tuple[str, ...]:
        """Those that are there."""
        return tuple(dict.fromkeys(name for name in self if name))


def parse_interactions(
    chunks: Iterable[Chunk],
    columns: Columns,
    path: Path,
    time_format: str = "",
    *,
    settable: bool = False,
    ticks: int = 1,
) -> Iterator[pl.DataFrame]:
    """Parses users, items, times, events and weights of a table into common columns.

    Args:
      chunks: of the table.
      columns: names of its columns.
      path: the file they come from, for errors.
      time_format: as for `parse_timestamps`.
      settable: as for `parse_timestamps`.
      ticks: as for `parse_timestamps`.
    """
    for chunk in chunks:
        parsed = {
            "user": parse_ids(chunk, columns.user, path),
            "item": parse_ids(chunk, columns.item, path),
            "timestamp": parse_timestamps(
                chunk, columns.timestamp, path, time_format, settable=settable, ticks=ticks
            ),
        }
        if columns.event:
            parsed["event"] = parse_ids(chunk, columns.event, path)
        if columns.weight:
            parsed["weight"] = parse_weights(chunk, columns.weight, path)
        yield pl.DataFrame(parsed)


def parse_weights(chunk: Chunk, column: str, path: Path) -> pl.Series:
    """Numbers from 0 on, float32; raises UserError with the line of the first other value."""
    texts = chunk.table[column].cast(pl.String).str.strip_chars()
    weights = texts.cast(pl.Float64, strict=False).fill_nan(None).cast(pl.Float32)
    row = _first((weights.is_null() | (weights < 0) | weights.is_infinite()).fill_null(True))
    if row is not None:
        raise UserError(
            f"{path}, line {chunk.lines[row]}: column {column!r} holds {shown(repr(texts[row]))}, "
            "which is no weight: a number from 0 on belongs there."
        )
    return weights


def parse_ids(chunk: Chunk, column: str, path: Path) -> pl.Series:
    """Stripped, non-empty strings; raises UserError with the line of the first empty one."""
    ids = chunk.table[column].cast(pl.String).str.strip_chars(WHITE_SPACE)
    row = _first(ids.is_null() | ids.str.to_lowercase().is_in(_NO_ID))
    if row is not None:
        found = "is empty" if not ids[row] else f"holds {shown(ids[row])!r}, which is no id"
        raise UserError(
            f"{path}, line {chunk.lines[row]}: column {column!r} {found}. Every row needs an id; "
            "remove the row or fill it in."
        )
    return ids


def parse_timestamps(
    chunk: Chunk,
    column: str,
    path: Path,
    time_format: str = "",
    *,
    settable: bool = False,
    ticks: int = 1,
) -> pl.Series:
    """Milliseconds since 1970 from seconds, or from ISO dates or date-times (UTC without a zone).

    Args:
      chunk: its table has the column.
      column: its name.
      path: the file it comes from, for the error.
      time_format: format of times in another form, as `datetime.strptime` reads it, or `ORDER`; ""
        is none.
      settable: whether it comes from `data.timestamp_format`, for errors.
      ticks: how many of its units numbers have in a second, 1 or 1000.

    Raises:
      UserError: if a time can't be read, or is a number of seconds where milliseconds belong;
        names the first line and its value.
    """
    texts = chunk.table[column].cast(pl.String).str.strip_chars()
    if time_format == ORDER:
        times = _from_numbers(texts, TICKS) * _A_PLACE
    elif time_format:
        times = _by_distinct(texts, lambda distinct: _from_format(distinct, time_format))
    else:
        times = _from_numbers(texts, ticks)
        if ticks > 1:
            _require_ticks(chunk, column, path, times)
        if times.null_count():
            dates = _by_distinct(texts, lambda distinct: _from_dates(distinct, _ISO))
            times = pl.select(pl.coalesce(times, dates)).to_series()
    row = _first(times.is_null())
    if row is not None:
        raise UserError(
            f"{path}, line {chunk.lines[row]}: column {column!r} holds "
            f"{shown(repr(texts[row]))}, which is {_no_time(time_format, settable)}"
        )
    return times


def _no_time(time_format: str, settable: bool) -> str:
    if time_format == ORDER:
        return f"not a number, as {_FLAG}={ORDER} needs."
    if time_format:
        return f"not of the format {time_format!r}" + (f" ({_FLAG})." if settable else ".")
    told = (
        "neither a number of seconds since 1970 nor a date like 2024-01-31, 2024-01-31 23:59:59 or "
        "2024-01-31T23:59:59+02:00."
    )
    return f"{told} {_FLAG} names another format." if settable else told


def _require_ticks(chunk: Chunk, column: str, path: Path, times: pl.Series) -> None:
    """Raises UserError at a number of milliseconds that is in 1970: it counts seconds."""
    row = _first((times.abs() < TICKS * _YEAR).fill_null(False) & (times != 0))
    if row is not None:
        found = shown(chunk.table[column][row])
        raise UserError(
            f"{path}, line {chunk.lines[row]}: column {column!r} holds {found}, where milliseconds "
            "since 1970 belong. Is it in seconds? Fetch the file as its owner publishes it."
        )


def _from_numbers(texts: pl.Series, ticks: int) -> pl.Series:
    whole, numbers = (texts.cast(kind, strict=False) for kind in (pl.Int64, pl.Float64))
    # Numbers that are not written as whole numbers ("1.5", "1e9") are read as floats. (They are
    # rounded to the microsecond first: .123 as a float may be slightly less.)
    factor = TICKS // ticks
    cut = ((numbers.fill_nan(None) * factor * 1e3).round() / 1e3).floor()
    fits = (numbers.abs() < _MAX_SECONDS).fill_null(False)
    return pl.select(
        pl.when(fits).then(pl.coalesce(whole * factor, cut.cast(pl.Int64, strict=False)))
    ).to_series()


def _by_distinct(texts: pl.Series, parse: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """Times of texts; each distinct text is parsed once, since few dates stand for many rows."""
    distinct = texts.unique()
    table = pl.DataFrame({"text": distinct, "time": parse(distinct)})
    rows = pl.DataFrame({"text": texts})
    return rows.join(table, on="text", how="left", maintain_order="left")["time"]


def _from_dates(texts: pl.Series, formats: Sequence[str]) -> pl.Series:
    """Times by the first of several formats of polars that fits, null where none does."""
    parsed = [
        (
            texts.str.to_datetime(form, strict=False, time_unit="us")
            if "%H" in form
            else texts.str.to_date(form, strict=False).cast(pl.Datetime("us"))
        ).dt.replace_time_zone(None)  # polars has brought zones to UTC
        for form in formats
    ]
    return pl.select(pl.coalesce(parsed).dt.epoch("ms")).to_series()


def _from_format(texts: pl.Series, form: str) -> pl.Series:
    """Times by a format of `datetime.strptime`, null where it does not fit."""
    parts = _PART.findall(form)
    times = pl.select(pl.lit(None, pl.Int64).repeat_by(texts.len()).explode()).to_series()
    directives = [part for part in parts if part[0] == "%" or part in _ALIKE]
    named = set(directives)
    # A date; a time of the day only with hours; nothing twice, and nothing that polars lacks.
    of_polars = {"%Y", "%m", "%d"} <= named <= set(_ALIKE) and len(named) == len(directives)
    if of_polars and ("%H" in named or not named & {"%M", "%S", ".%f"}):
        pattern = "".join(_ALIKE.get(part, re.escape(part)) for part in parts)
        alike = texts.str.contains(f"^{pattern}$")
        with contextlib.suppress(pl.exceptions.ComputeError):  # a format that is not polars'
            found = _from_dates(texts, [form.replace(".%f", "%.f")])
            times = pl.select(pl.when(alike).then(found)).to_series()
    left = texts.to_frame("text").filter(times.is_null())["text"]
    others = pl.Series([_strptime(text, form) for text in left], dtype=pl.Int64)
    return times.scatter(times.is_null().arg_true(), others)


def _strptime(text: str | None, form: str) -> int | None:
    """Milliseconds since 1970; None if the text is not of the format."""
    if text is None:
        return None
    try:
        time = datetime.datetime.strptime(text, form)
    except (ValueError, re.error) as error:  # re.error: a directive that comes twice
        about_format = ("bad directive", "stray %", "redefinition")
        if any(words in str(error) for words in about_format):
            raise UserError(
                f"{_FLAG} is {form!r}, which strptime can't read: {shown(error)}."
            ) from error
        return None
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.UTC)
    return (time - _EPOCH) // _MILLISECOND


def _first(flags: pl.Series) -> int | None:
    index = flags.arg_true()
    return int(index[0]) if len(index) else None


def spelled(value: Any) -> str | None:
    """A value of a field (of users or items) as it is compared; None if it is missing.

    Programs write one value in several ways: 30, 30.0 and "30" are one, and so are True and true.

    Raises:
      UserError: if it is neither a text, a number nor a truth value.
    """
    if value is None:
        return None
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        value = str(float(value))
    if not isinstance(value, str):
        raise UserError(
            f"{shown(repr(value))} is no value of a field: it must be a text or a number."
        )
    text = value.strip()
    if text.lower() in _NO_ID:
        return None
    if text.lower() in {"true", "false"}:
        return text.lower()
    return _WHOLE.sub(r"\1", text)
