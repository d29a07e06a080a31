"""The range of a data set's times, and whether it is plausible for seconds since 1970."""

import datetime
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from tssr_jax.data_pipeline.sources.values import LATEST, TICKS
from tssr_jax.errors import UserError, shown

# Times of 1970 are those of another unit (minutes, hours, days of a spreadsheet), or missing ones,
# where others are of these years.
_OTHERS_FROM = 1980
_LAST_YEAR = 2100
# Above this share, times outside of these years are no single mistakes.
_BULK = 0.01
_IN_1970 = f"of 1970, where others are after {_OTHERS_FROM}"
_ODD = ("before 1970", _IN_1970, f"after {_LAST_YEAR}")
_LIKELY = "likely"
_FLAG = "--config.data.timestamp_format"


class TimeRange:
    """Times of interactions: the first, the last, and how many are of years that are unlikely.

    Args:
      path: the file of interactions, for errors.
      numbers: whether numbers are seconds since 1970 (no `data.timestamp_format` is set).
    """

    def __init__(self, path: Path, *, numbers: bool = True):
        self._path, self._numbers = path, numbers
        self._dates = True  # whether all times read as numbers like 20240131
        self._first, self._last = 2**62, -(2**62)
        self._rows = 0
        self._number = dict.fromkeys((*_ODD, _LIKELY), 0)
        self._example: dict[str, str] = {}

    def checked(self, chunks: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """The chunks, whose times (`timestamp`, milliseconds) are checked.

        Raises:
          UserError: as `add` does; at the end, as `require_plausible` does.
        """
        for chunk in chunks:
            self.add(chunk)
            yield chunk
        self.require_plausible()

    def add(self, chunk: pl.DataFrame) -> None:
        """Adds the times (`timestamp`, milliseconds) of interactions.

        Raises:
          UserError: at a time whose minutes do not fit into an int32, as batches have them.
        """
        self._require_near(chunk)
        times = chunk["timestamp"]
        self._dates = self._dates and _are_dates(times)
        if times.len():
            self._first = min(self._first, int(times.min()))  # type: ignore[arg-type]
            self._last = max(self._last, int(times.max()))  # type: ignore[arg-type]
        self._rows += times.len()
        start, second, others, end = map(_milliseconds, (1970, 1971, _OTHERS_FROM, _LAST_YEAR))
        self._number[_LIKELY] += int(times.is_between(others, end).sum())
        some = times < start, times.is_between(start, second, "left"), times >= end
        for name, rows in zip(_ODD, some, strict=True):
            if number := int(rows.sum()):
                self._number[name] += number
                self._example.setdefault(name, _told(chunk.filter(rows)))

    def merge(self, other: "TimeRange") -> None:
        """Adds the times of another range."""
        self._first = min(self._first, other._first)
        self._last = max(self._last, other._last)
        self._rows += other._rows
        self._dates = self._dates and other._dates
        for name, number in other._number.items():
            self._number[name] += number
        self._example = other._example | self._example

    def require_plausible(self) -> None:
        """Checks the years of all times.

        Raises:
          UserError: if more than one in a hundred times is before 1970, of 1970 where others are of
            later decades, or after 2100, or if all are dates like 20240131. Fewer are told.
        """
        if self._rows and self._numbers and self._last < _milliseconds(1971):
            self._require_no_dates()
        for name in _ODD:
            number = self._number[name]
            if not number or (name == _IN_1970 and not self._number[_LIKELY]):
                continue
            told = (
                f"{self._path} has {number:,} of {self._rows:,} times {name}, such as "
                f"{self._example[name]}"
            )
            if number > _BULK * self._rows:
                more = " Does the column have two units?" if name == _IN_1970 else ""
                raise UserError(
                    f"{told}. Times must be seconds since 1970, or dates; convert the column if it "
                    f"has another unit.{more}"
                )
            print(f"{told}.", flush=True)

    def _require_no_dates(self) -> None:
        """Raises UserError if seconds of 1970 are rather dates."""
        if self._dates:
            first, last = (f"{time / TICKS:.15g}" for time in (self._first, self._last))
            raise UserError(
                f"{self._path} has times from {first} to {last}, which look like dates written as "
                f"YYYYMMDD. Numbers are seconds since 1970. Name the format: {_FLAG}=%Y%m%d."
            )

    def report(self) -> dict[str, str]:
        """For the report: dates of the first and of the last interaction (UTC)."""
        return {"first_date": _date(self._first), "last_date": _date(self._last)}

    def _require_near(self, chunk: pl.DataFrame) -> None:
        far = chunk.filter(pl.col("timestamp").abs() > TICKS * LATEST)
        if far.is_empty():
            return
        rows = self._rows + chunk.height - far.height
        two = f"{rows:,} other times are not: the column has two units. " if rows else ""
        raise UserError(
            f"{self._path} has the time {far['timestamp'][0] // TICKS}{_of(far)}, which in seconds "
            f"since 1970 is thousands of years away. {two}These are probably milliseconds or "
            "microseconds (convert the column to seconds), or a placeholder for a missing date."
        )


def _told(rows: pl.DataFrame) -> str:
    """The first time, and whose it is."""
    time = rows["timestamp"][0]
    return f"{time / TICKS:.15g} ({_date(time)}){_of(rows)}"


def _of(rows: pl.DataFrame) -> str:
    user, item = (shown(repr(rows[name][0]), 50) for name in ("user", "item"))
    return f" of user {user} and item {item}"


def _are_dates(times: pl.Series) -> bool:
    """Whether all numbers of seconds, given in milliseconds, are dates written as YYYYMMDD."""
    numbers = times // TICKS
    month, day = numbers // 100 % 100, numbers % 100
    year = numbers.is_between(19_000_101, 21_001_231)
    return bool((year & month.is_between(1, 12) & day.is_between(1, 31)).all())


def _milliseconds(year: int) -> int:
    return int(datetime.datetime(year, 1, 1, tzinfo=datetime.UTC).timestamp()) * TICKS


def _date(milliseconds: int) -> str:
    """The date, or "year N" where the calendar has none."""
    days = milliseconds // (TICKS * 86_400)
    if -719_162 <= days <= 2_932_896:  # years 1 to 9999
        return str(datetime.date(1970, 1, 1) + datetime.timedelta(days=days))
    return f"year {1970 + int(days / 365.2425)}"
