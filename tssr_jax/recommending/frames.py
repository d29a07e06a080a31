"""Histories and lists as DataFrames: polars, pandas, or others that polars reads."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ml_collections
import polars as pl

from tssr_jax.errors import UserError, shown
from tssr_jax.recommending.histories import Histories, History
from tssr_jax.recommending.lists_file import SCHEMA, list_rows
from tssr_jax.recommending.results import Recommendations

_HISTORIES = "The DataFrame of histories"
_FIRST = "\0first"  # no column is called that


@runtime_checkable
class Frame(Protocol):
    """A DataFrame of any library; (a Series has no columns)."""

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
        raise UserError(f"{name} is of type {kind}; it must be a DataFrame of polars or pandas.")
    try:
        return pl.DataFrame(frame)
    except (pl.exceptions.PolarsError, TypeError, ValueError, ImportError) as error:
        raise UserError(f"{name} can't be read as a DataFrame: {shown(error, 300)}") from error


def histories_of(frame: Any, data: ml_collections.ConfigDict) -> list[History]:
    """The histories of a DataFrame, users in the order of their first rows.

    Args:
      frame: a row for each item, in the columns that `data` names; or columns user and items, with
        lists. Rows of a user are put in the order of their times if there are any.
      data: section `data` of the run's configuration.

    Raises:
      UserError: for a missing column, or a malformed row.
    """
    table = as_polars(frame, _HISTORIES)
    user, at = data.user_column, data.timestamp_column
    if user in table.columns:
        numbered = table.with_row_index(_FIRST).with_columns(pl.col(_FIRST).min().over(user))
        order = [_FIRST, *(name for name in (at,) if name in table.columns)]
        table = numbered.sort(order, maintain_order=True).drop(_FIRST)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "histories.parquet"
        table.write_parquet(path)
        columns = (user, data.item_column, at, data.timestamp_format)
        try:
            return list(Histories(path, *columns))
        except UserError as error:
            raise UserError(str(error).replace(str(path), _HISTORIES)) from error


def lists_like(frame: Frame, histories: Sequence[History], lists: Sequence[Recommendations]) -> Any:
    """A DataFrame with a row for each recommended item, of the library that `frame` is of.

    Columns are those of `tssr recommend`: user, rank, item, title, score, ...
    """
    pairs = zip(histories, lists, strict=True)
    rows: Iterator[tuple[Any, ...]] = (row for pair in pairs for row in list_rows(*pair))
    found = pl.DataFrame(list(rows), schema=SCHEMA, orient="row")
    library = type(frame).__module__.partition(".")[0]
    if library == "pandas":
        return found.to_pandas()
    return found.to_arrow() if library == "pyarrow" else found
