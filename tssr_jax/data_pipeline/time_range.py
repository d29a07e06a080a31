"""The range of a data set's times, and whether it is plausible for seconds since 1970."""

import datetime
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from tssr_jax.data_pipeline.sources.values import LATEST, TICKS
from tssr_jax.errors import UserError

_YEARS = (1970, 2100)
# Above this share, times outside of these years are no single mistakes.
_BULK = 0.01


class TimeRange:
    """Times of interactions: the first, the last, and how many are before 1970 or after 2100.

    Args:
      path: the file of interactions, for errors.
    """

    def __init__(self, path: Path):
        self._path = path
        self._first, self._last = 2**62, -(2**62)
        self._rows = 0
        self._outside = dict.fromkeys(("before 1970", "after 2100"), 0)
        self._example: dict[str, int] = {}

    def checked(self, chunks: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """The chunks, whose times (`timestamp`, milliseconds) are checked.

        Raises:
          UserError: as `add` does; at the end, as `require_plausible` does.
        """
        for chunk in chunks:
            self.add(chunk["timestamp"])
            yield chunk
        self.require_plausible()

    def add(self, times: pl.Series) -> None:
        """Adds times in milliseconds.

        Raises:
          UserError: at a time whose minutes do not fit into an int32, as batches have them.
        """
        self._require_near(times)
        if times.len():
            self._first = min(self._first, int(times.min()))  # type: ignore[arg-type]
            self._last = max(self._last, int(times.max()))  # type: ignore[arg-type]
        self._rows += times.len()
        start, end = (_milliseconds(year) for year in _YEARS)
        for name, some in (("before 1970", times < start), ("after 2100", times >= end)):
            if number := int(some.sum()):
                self._outside[name] += number
                self._example.setdefault(name, int(times.filter(some)[0]))

    def merge(self, other: "TimeRange") -> None:
        """Adds the times of another range."""
        self._first = min(self._first, other._first)
        self._last = max(self._last, other._last)
        self._rows += other._rows
        for name, number in other._outside.items():
            self._outside[name] += number
        self._example = other._example | self._example

    def require_plausible(self) -> None:
        """Raises UserError if more than one in a hundred times is before 1970 or after 2100."""
        for name, number in self._outside.items():
            if number > _BULK * self._rows:
                example = self._example[name]
                raise UserError(
                    f"{self._path} has {number:,} of {self._rows:,} times {name}, such as "
                    f"{example / TICKS:.15g} ({_date(example)}). Times must be seconds since 1970, "
                    "or dates; convert the column if it has another unit."
                )

    def report(self) -> dict[str, str]:
        """For the report: dates of the first and of the last interaction (UTC)."""
        return {"first_date": _date(self._first), "last_date": _date(self._last)}

    def _require_near(self, times: pl.Series) -> None:
        far = times.filter(times.abs() > TICKS * LATEST)
        if not len(far):
            return
        rows = self._rows + times.len() - len(far)
        two = f"{rows:,} other times are not: the column has two units. " if rows else ""
        raise UserError(
            f"{self._path} has the time {far[0] // TICKS}, which in seconds since 1970 is "
            f"thousands of years away. {two}These are probably milliseconds or microseconds: "
            "convert the column to seconds."
        )


def _milliseconds(year: int) -> int:
    return int(datetime.datetime(year, 1, 1, tzinfo=datetime.UTC).timestamp()) * TICKS


def _date(milliseconds: int) -> str:
    """The date, or "year N" where the calendar has none."""
    days = milliseconds // (TICKS * 86_400)
    if -719_162 <= days <= 2_932_896:  # years 1 to 9999
        return str(datetime.date(1970, 1, 1) + datetime.timedelta(days=days))
    return f"year {1970 + int(days / 365.2425)}"
