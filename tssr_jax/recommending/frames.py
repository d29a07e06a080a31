"""Histories and lists as DataFrames: polars, pandas, or others that polars reads."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ml_collections
import numpy as np
import polars as pl

from tssr_jax.data_pipeline.sources import tables, values
from tssr_jax.data_pipeline.sources.delimited import Chunk, require_columns
from tssr_jax.errors import UserError, shown
from tssr_jax.recommending.forms import Form, form_of
from tssr_jax.recommending.histories import EVENTS, LISTS, TIMES, Histories, History
from tssr_jax.recommending.items import Items
from tssr_jax.recommending.lists_file import SCHEMA, list_rows
from tssr_jax.recommending.results import Recommendations

_HISTORIES = "The DataFrame of histories"
_FIRST = "\0first"  # no column is called that
# What polars and other libraries raise for a table that can't be converted.
_UNREADABLE = (
    pl.exceptions.PolarsError,
    ArithmeticError,
    ImportError,
    NotImplementedError,
    TypeError,
    ValueError,
)


@runtime_checkable
class Frame(Protocol):
    """A DataFrame of any library; a Series has no columns."""

    @property
    def columns(self) -> Any:
        """Its columns, or their names."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """The protocol by which libraries exchange tables."""


def as_polars(frame: Any, name: str) -> pl.DataFrame:
    """A DataFrame of any library, by polars.

    Args:
      frame: the DataFrame.
      name: what it is, for the error.

    Raises:
      UserError: if it is none.
    """
    if not isinstance(frame, Frame):
        kind = shown(type(frame).__name__)
        raise UserError(
            f"{name} is of type {kind}; it must be a DataFrame of polars, of pandas from 2.2 on, "
            "or of another library that speaks Arrow."
        )
    try:
        return pl.DataFrame(frame)
    except _UNREADABLE as error:
        raise UserError(
            f"{_unreadable(frame, name)} can't be read: {shown(error, 300)}. Ids are strings or "
            "whole numbers, in a column all of one type. Drop a column that nothing reads."
        ) from error


def _unreadable(frame: Any, name: str) -> str:
    """The first column that can't be read alone; the DataFrame if its library can't tell."""
    for column in list(frame.columns):
        try:
            one = frame[[column]]
        except Exception:  # of any library
            return name
        try:
            pl.DataFrame(one)
        except _UNREADABLE:
            return f"{name}: column {shown(column)!r}"
    return name


def histories_of(frame: Any, data: ml_collections.ConfigDict, items: Items) -> list[History]:
    """The histories of a DataFrame, users in the order of their first rows.

    Args:
      frame: a row for each item, in the columns that `data` names; or columns user and items, with
        lists. Rows of a user are put in the order of their times if there are any. Fields of users
        that the model reads are columns, too.
      data: section `data` of the run's configuration.
      items: of the run; tell which events and fields of users its model reads.

    Raises:
      UserError: for a missing column, or a malformed row.
    """
    table = as_polars(frame, _HISTORIES)
    form = form_of(data, items.events, items.profile_fields)
    lists = LISTS in table.columns
    read = (LISTS, TIMES, EVENTS) if lists else (form.item, form.time, form.event)
    needed = [LISTS] if lists else [form.user, form.item]
    require_columns(table.columns, needed, Path(_HISTORIES), "Rename a column.")
    asked = dict.fromkeys((form.user, *read, *form.fields))
    table = table.select(name for name in asked if name in table.columns)
    if not table.height:
        return []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "histories.parquet"
        try:
            table.write_parquet(path)
            if not lists:
                _grouped(path, form).write_parquet(path)
            return list(Histories(path, form))
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{_HISTORIES}: a column can't be read ({shown(error)}).") from error
        except UserError as error:
            told = str(error).replace(str(path), _HISTORIES).replace(", line ", ", row ")
            raise UserError(told) from error


def _grouped(path: Path, form: Form) -> pl.DataFrame:
    """Columns user, items and maybe times, lists, of a file with a row for each item."""
    user, item, at = form.user, form.item, form.time
    rows = tables.read_table(path, needed=(user, item))
    table = rows.table.with_columns(pl.col(user).str.strip_chars())
    table = table.with_row_index(_FIRST).with_columns(pl.col(_FIRST).min().over(user))
    table = table.with_columns(pl.col(item).fill_null("").str.strip_chars())
    if missing := (table[user].fill_null("").str.strip_chars() == "").arg_true().to_list():
        raise UserError(f"{path}, line {rows.lines[missing[0]]}: the user is missing.")
    told = [
        pl.col(name).replace("", None).drop_nulls().first()
        for name in form.fields
        if name in table.columns
    ]
    profiles = table.group_by(user, maintain_order=True).agg(*told)
    there = table[item] != ""
    columns = [pl.col(item).filter(pl.col(item) != "").alias(LISTS)]
    if at in table.columns and there.any():
        own = Chunk(rows.lines[there.to_numpy()], table.filter(there))
        milliseconds = values.parse_timestamps(own, at, path, form.time_format, settable=True)
        seconds = np.zeros(table.height)
        seconds[there.to_numpy()] = milliseconds.to_numpy() / values.TICKS
        table = table.with_columns(pl.Series(TIMES, seconds))
        table = table.sort(_FIRST, TIMES, maintain_order=True)
        columns.append(pl.col(TIMES).filter(pl.col(item) != ""))
    if form.events and form.event in table.columns:
        columns.append(pl.col(form.event).filter(pl.col(item) != "").alias(EVENTS))
    first = pl.col(_FIRST).first()
    grouped = table.group_by(user).agg(first, *columns)
    return grouped.join(profiles, on=user).sort(_FIRST).drop(_FIRST)


def lists_like(frame: Frame, histories: Sequence[History], lists: Sequence[Recommendations]) -> Any:
    """A DataFrame with a row for each recommended item, of the library that `frame` is of.

    Columns are those of `tssr recommend`: user, rank, item, title, score, ... Ids are strings.
    """
    pairs = zip(histories, lists, strict=True)
    rows: Iterator[tuple[Any, ...]] = (row for pair in pairs for row in list_rows(*pair))
    found = pl.DataFrame(list(rows), schema=SCHEMA, orient="row")
    library = type(frame).__module__.partition(".")[0]
    if library == "pandas":
        return found.to_pandas()
    return found.to_arrow() if library == "pyarrow" else found
