"""Reads histories from a file, or the files of a folder, one after the other.

Memory does not grow with the file, except that users' ids are kept for files with a row for each
item, to detect users that come again.

    .jsonl    {"user": "u1", "items": ["i3", "i7"]}, one line each; "user" is by default the line
    .csv      user,item: one row each, the rows of a user together (.csv.gz as well)
    .parquet  columns user,item, or user,items with lists

Items are in the owner's ids, oldest first. A history may be empty: [], or a row without an item.
Times are read where there are any: "times", a list of seconds since 1970; or the column of times in
the form that the data has. So are events for models that read them: "events", a list of names; or
the column of events. And so is what is known of users: "profile", values by fields; or a column for
each field, of which a user's first row with a value counts.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from tssr_jax.data_pipeline.sources import tables, values
from tssr_jax.data_pipeline.sources.delimited import Chunk, require_columns
from tssr_jax.data_pipeline.sources.json_lines import parse_object
from tssr_jax.data_pipeline.sources.text_files import read_blocks
from tssr_jax.data_pipeline.sources.values import spelled
from tssr_jax.errors import UserError, shown
from tssr_jax.recommending.forms import USUAL, Form
from tssr_jax.recommending.items import as_id, require_seconds

INPUTS = (".jsonl", ".csv", ".csv.gz", ".parquet")
LISTS, TIMES, EVENTS, PROFILE = "items", "times", "events", "profile"
# Lists of times must be called TIMES; a list of another of these names would not be read.
_NOT_TIMES = ("timestamps", "timestamp", "time")


class History(NamedTuple):
    """The history of one user.

    Attributes:
      user: the owner's id, or the number of the line.
      items: ids, oldest first.
      times: of the items, seconds since 1970; None if the file has none.
      events: of the items; None if the file has none, or they are not read.
      profile: what is known of the user, by fields; None if the file tells nothing, or it is not
        read.
    """

    user: str
    items: list[str]
    times: list[float] | None = None
    events: list[str] | None = None
    profile: dict[str, Any] | None = None


def by_name(histories: Sequence[History]) -> dict[str, Any]:
    """Arguments of `Recommender.recommend`."""
    return {
        "histories": [own.items for own in histories],
        "times": [own.times for own in histories],
        "events": [own.events for own in histories],
        "profiles": [own.profile for own in histories],
    }


class Histories:
    """The histories of a file, or of all files of a folder in the order of their names.

    Attributes:
      files: each file's histories.

    Args:
      path: the file or folder.
      form: names of columns, and formats.

    Raises:
      UserError: if there is no such file, or no file of histories in the folder.
    """

    def __init__(self, path: Path, form: Form):
        paths = [path]
        if path.is_dir():
            paths = sorted(p for p in path.iterdir() if p.is_file() and p.name[0] not in "._")
            paths = [p for p in paths if p.name.endswith(INPUTS)]
            if not paths:
                raise UserError(
                    f"--input={path}: the folder has no file whose name ends in "
                    f"{', '.join(INPUTS)}."
                )
        self.files = [HistoryFile(own, form) for own in paths]
        self._several = path.is_dir()

    def count(self) -> int | None:
        """See `HistoryFile.count`."""
        counts = [file.count() for file in self.files]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def __iter__(self) -> Iterator[History]:
        """See `HistoryFile`; users that have no id are named by their file and line."""
        seen: set[str] = set()
        for file in self.files:
            yield from file.read(f"{file.path.name}:" if self._several else "", seen)


class HistoryFile:
    """The histories of a file.

    Attributes:
      path: the file.

    Args:
      path: its name ends as one of `INPUTS`.
      form: names of columns, and formats.

    Raises:
      UserError: if there is no such file, or its name ends otherwise.
    """

    def __init__(self, path: Path, form: Form = USUAL):
        if not path.is_file():
            raise UserError(f"--input: there is no file {path}.")
        if not path.name.endswith(INPUTS):
            raise UserError(f"--input is {path}; its name must end in {', '.join(INPUTS)}.")
        self.path, self._form = path, form
        self._lists = path.suffix == ".parquet" and LISTS in _parquet_columns(path)

    def count(self) -> int | None:
        """Number of histories, for a progress bar; None if the whole file would have to be read."""
        if self.path.suffix == ".jsonl":
            with self.path.open("rb") as file:
                return sum(1 for line in file if line.strip())
        if self._lists:
            return int(pl.scan_parquet(self.path, glob=False).select(pl.len()).collect().item())
        return None

    def __iter__(self) -> Iterator[History]:
        """Yields histories in the file's order; raises UserError for a malformed line."""
        return self.read("", set())

    def read(self, prefix: str, seen: set[str]) -> Iterator[History]:
        """Yields histories in the file's order.

        Args:
          prefix: precedes the number of a line that names no user.
          seen: users of files before, in files with a row for each item; gets this file's.

        Raises:
          UserError: for a malformed line, or a user that comes again.
        """
        if self.path.suffix == ".jsonl":
            histories = self._from_json_lines(prefix)
        else:
            histories = self._from_list_rows() if self._lists else self._from_item_rows(seen)
        for history in histories:
            user, times = shown(repr(history.user)), history.times or ()
            if None in times:
                raise UserError(f"{self.path}: user {user} has items without a time.")
            unknown = [own for own in history.events or () if own not in self._form.events]
            if unknown:
                told = f"the event {shown(repr(unknown[0]))}" if unknown[0] else "no event"
                raise UserError(
                    f"{self.path}: user {user} has an item with {told}; those of the run's data "
                    f"are {shown(', '.join(self._form.events), 300)}."
                )
            try:
                require_seconds(times)
            except UserError as error:
                raise UserError(f"{self.path}, user {user}: {error}") from error
            for first, second in itertools.pairwise(times):
                if first > second:
                    raise UserError(
                        f"{self.path}: the history of user {user} is not oldest first: time "
                        f"{second} comes after {first}. Order it, or remove its times."
                    )
            yield history

    def _from_json_lines(self, prefix: str) -> Iterator[History]:
        if not self.path.stat().st_size:
            return
        for block in read_blocks(self.path):
            for number, line in enumerate(block.lines(), block.line):
                if not line.strip():
                    continue
                try:
                    fields = parse_object(line.decode())
                    self._require_times([n for n, x in fields.items() if isinstance(x, list)])
                    items = fields[LISTS]
                    if not isinstance(items, list):
                        raise TypeError(f"'items' is {shown(items)!r}, no list")
                    user = as_id(fields.get("user", f"{prefix}{number}"))
                    if not user:
                        raise ValueError("its user is empty")
                    ids, times = [as_id(item) for item in items], _times(fields, items)
                    events = _events(fields, items) if self._form.events else None
                    profile = _profile(fields, self._form.fields)
                    history = History(user, ids, times, events, profile)
                except (ValueError, KeyError, TypeError, UserError) as error:
                    raise UserError(
                        f"{self.path}, line {number} is no history ({_told(error)}): it must look "
                        'like {"user": "u1", "items": ["i3", "i7"]}, oldest first.'
                    ) from error
                yield history

    def _from_list_rows(self) -> Iterator[History]:
        form = self._form
        table = pl.scan_parquet(self.path, glob=False)
        schema = table.collect_schema()
        names = schema.names()
        require_columns(names, (form.user, LISTS), self.path, "")
        self._require_times([name for name in names if schema[name].is_nested()])
        _require_lists(schema, form.user, self.path)
        times = _seconds(schema) if TIMES in names else pl.lit(None)
        with_events = form.events and EVENTS in names
        told = [name for name in form.fields if name in names]
        texts = pl.List(pl.String)
        of_user, *own = (
            tables.as_texts({name: schema[name]}, self.path, [name], rest=False)[0]
            for name in (form.user, *told)
        )
        table = table.select(
            of_user.cast(pl.String),
            pl.col(LISTS).cast(texts),
            times.alias(TIMES),
            pl.col(EVENTS).cast(texts) if with_events else pl.lit(None).alias(EVENTS),
            *(of.cast(pl.String).alias(f"\0{name}") for name, of in zip(told, own, strict=True)),
        )
        row = 0
        try:
            for chunk in table.collect_batches(maintain_order=True):
                for user, items, at, events, *values_told in chunk.iter_rows():
                    row += 1
                    self._require_user(user, f"row {row}")
                    kept = _without_empty(items or (), at, events)
                    profile = dict(zip(told, values_told, strict=True)) if told else None
                    yield History(user.strip(), *kept, profile)
        except IndexError as error:
            raise UserError(f"{self.path}, row {row}: {shown(error)}.") from error
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{self.path} can't be read: {shown(error)}") from error

    def _from_item_rows(self, seen: set[str]) -> Iterator[History]:
        hint = "Rename it, or write histories as JSON lines."
        form = self._form
        names = tables.column_names(self.path, (form.user, form.item))
        timed = form.time in names
        with_events = bool(form.events) and form.event in names
        told = [name for name in form.fields if name in names]
        needed = [form.user, form.item, *told]
        needed += [form.time] * timed + [form.event] * with_events
        chunks = tables.read_chunks(self.path, needed=needed, hint=hint)
        rows = (
            (int(line), *row)
            for chunk in chunks
            for line, row in zip(
                chunk.lines, self._with_seconds(chunk, timed).iter_rows(), strict=True
            )
        )
        for user, group in itertools.groupby(rows, key=lambda row: (row[1] or "").strip()):
            own = list(group)
            line = own[0][0]
            self._require_user(user, f"line {line}")
            if user in seen:
                raise UserError(
                    f"{self.path}, line {line}: user {shown(user)!r} comes again after others. "
                    "Put the rows of a user together, oldest first."
                )
            seen.add(user)
            _, _, items, times, events, *of_fields = map(list, zip(*own, strict=True))
            kept = _without_empty(items, times if timed else None, events if with_events else None)
            first = [next((x for x in column if x), None) for column in of_fields]
            yield History(user, *kept, dict(zip(told, first, strict=True)) if told else None)

    def _with_seconds(self, rows: Chunk, timed: bool) -> pl.DataFrame:
        """Columns user, item, seconds since 1970, event, null where there are none; and fields."""
        form, chunk = self._form, rows.table
        event = pl.lit(None, pl.String)
        if form.events and form.event in chunk.columns:
            event = pl.col(form.event).str.strip_chars()
        told = [name for name in form.fields if name in chunk.columns]

        def select(seconds: Any) -> pl.DataFrame:
            named = {
                **{"user": form.user, "item": form.item, "seconds": seconds, EVENTS: event},
                **{f"\0{name}": name for name in told},
            }
            return chunk.select(**named)

        # A row without an item is an empty history, and needs no time.
        there = chunk[form.item].fill_null("").str.strip_chars() != ""
        if not timed or not there.any():
            return select(pl.lit(None, pl.Float64))
        some = chunk[form.time].filter(there)[0]
        times = pl.when(there).then(pl.col(form.time)).otherwise(pl.lit(some))
        some_times = Chunk(rows.lines, chunk.select(times.alias(form.time)))
        milliseconds = values.parse_timestamps(
            some_times, form.time, self.path, form.time_format, settable=True
        )
        return select(milliseconds / values.TICKS)

    def _require_times(self, lists: Collection[str]) -> None:
        """Raises UserError if one of these lists has times, but is not called so."""
        wrong = next((name for name in (self._form.time, *_NOT_TIMES) if name in lists), None)
        if TIMES not in lists and wrong is not None:
            raise UserError(f"{wrong!r} is not read; call lists of times {TIMES!r} ({self.path})")

    def _require_user(self, user: str | None, where: str) -> None:
        if not user or not user.strip():
            raise UserError(f"{self.path}, {where}: the user is missing.")


def _require_lists(schema: Mapping[str, pl.DataType], user: str, path: Path) -> None:
    """Raises UserError if the column of users has lists, or one of items or times has none."""
    inner = {name: getattr(kind, "inner", None) for name, kind in schema.items()}
    ids, at = inner[LISTS], inner.get(TIMES, pl.Int64())
    for name, fits, told in (
        (user, inner[user] is None, "ids"),
        (LISTS, ids and not ids.is_float(), "lists of ids"),
        (TIMES, at and (at.is_numeric() or at.is_temporal()), "lists of seconds or dates"),
    ):
        if not fits:
            raise UserError(f"{path}: column {name!r} must hold {told}; it has {schema[name]}.")


def _seconds(schema: Mapping[str, pl.DataType]) -> pl.Expr:
    """The column of lists of times, of numbers or of dates, as seconds since 1970."""
    kind = getattr(schema[TIMES], "inner", None)
    times = pl.col(TIMES)
    if isinstance(kind, pl.Datetime | pl.Date):
        seconds = pl.element().cast(pl.Datetime("us")).dt.epoch("us") / 1e6
        return times.list.eval(seconds)
    return times.cast(pl.List(pl.Float64))


def _times(fields: Any, items: list[Any]) -> list[float] | None:
    """The times of a line."""
    times = fields.get(TIMES)
    if times is None:
        return None
    numbers = isinstance(times, list) and all(
        isinstance(at, int | float) and not isinstance(at, bool) for at in times
    )
    if not numbers or len(times) != len(items):
        raise TypeError(f"'times' is {shown(times)!r}, not a number of seconds for each item")
    return times


def _events(fields: Any, items: list[Any]) -> list[str] | None:
    """The events of a line."""
    events = fields.get(EVENTS)
    if events is None:
        return None
    names = isinstance(events, list) and all(isinstance(own, str) for own in events)
    if not names or len(events) != len(items):
        raise TypeError(f"'events' is {shown(events)!r}, not a name for each item")
    return [own.strip() for own in events]


def _profile(fields: Any, known: Collection[str]) -> dict[str, Any] | None:
    """The profile of a line; None for a run that reads no fields."""
    profile = fields.get(PROFILE)
    if profile is None or not known:
        return None
    if not isinstance(profile, dict):
        raise TypeError(f"'profile' is {shown(profile)!r}, not values by fields")
    for name, value in profile.items():
        if name not in known:
            raise ValueError(f"'profile' has {shown(name)!r}; the run reads {', '.join(known)}")
        spelled(value)
    return profile


def _without_empty(
    items: Sequence[str | None], times: Sequence[float] | None, events: Sequence[str] | None
) -> tuple[list[str], list[float] | None, list[str] | None]:
    """Items that are there, their times and events; IndexError if there are not as many."""
    for name, own in (("times", times), ("events", events)):
        if own is not None and len(own) != len(items):
            raise IndexError(f"{len(items)} items have {len(own)} {name}")
    there = [place for place, item in enumerate(items) if item and item.strip()]
    kept = [str(items[place]).strip() for place in there]
    return (
        kept,
        None if times is None else [times[place] for place in there],
        None if events is None else [(events[place] or "").strip() for place in there],
    )


def _parquet_columns(path: Path) -> list[str]:
    try:
        return pl.scan_parquet(path, glob=False).collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file: {shown(error)}") from error


def _told(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else shown(error)
