"""Reads tables, all columns as strings: delimited text (`delimited`) and Parquet."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tssr_jax.data_pipeline.sources.delimited import (
    Chunk,
    Format,
    read_delimited,
    read_names,
    require_columns,
)
from tssr_jax.errors import UserError, shown

COMMAS = Format()
# The column of a Parquet table that holds items' vectors, see `content.own_vectors`; it is no text.
VECTORS = "vector"
_PARQUET_ROWS = 1_000_000


def read_table(
    path: Path,
    form: Format = COMMAS,
    *,
    needed: Sequence[str] = (),
    hint: str = "",
) -> Chunk:
    """Reads a table whole, with all its columns.

    Args:
      path: the file; a name that ends in .parquet is read as Parquet.
      form: how its text is written.
      needed: columns that must be there.
      hint: what to do if one of them is missing.

    Raises:
      UserError: as `read_chunks` does.
    """
    lines, parts = zip(*read_chunks(path, form, needed=needed, hint=hint, rest=True), strict=True)
    return Chunk(np.concatenate(lines), pl.concat(parts))


def read_chunks(
    path: Path,
    form: Format = COMMAS,
    *,
    needed: Sequence[str] = (),
    hint: str = "",
    rest: bool = False,
    may_be_empty: bool = False,
) -> Iterator[Chunk]:
    """Reads a table a chunk at a time.

    Args:
      path: the file; a name that ends in .parquet is read as Parquet.
      form: how its text is written.
      needed: columns that must be there.
      hint: what to do if one of them is missing.
      rest: read other columns, too.
      may_be_empty: whether a header alone is a table.

    Yields:
      Rows, with the number of the line where each begins; with its own number in Parquet.

    Raises:
      UserError: if the file is empty, damaged, lacks a column, or has a row that is malformed.
    """
    chunks = _read_parquet if path.suffix == ".parquet" else read_delimited
    rows = 0
    for chunk in chunks(path, form, needed, hint, rest):
        rows += chunk.table.height
        if chunk.table.height:
            yield chunk
    if not rows and not may_be_empty:
        raise UserError(f"{path} has a header but no rows.")


def column_names(path: Path, needed: Sequence[str] = ()) -> list[str]:
    """The names of a table's columns; by those that are needed the separator is found."""
    if path.suffix == ".parquet":
        return _scan(path).collect_schema().names()
    return list(read_names(path, COMMAS, needed))


def _scan(path: Path) -> pl.LazyFrame:
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty.")
    try:
        table = pl.scan_parquet(path, glob=False)
        table.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file: {shown(error)}") from error
    return table


def _read_parquet(
    path: Path, _: Format, needed: Sequence[str], hint: str, rest: bool
) -> Iterator[Chunk]:
    table = _scan(path)
    schema = table.collect_schema()
    require_columns(schema.names(), needed, path, hint)
    texts = table.select(as_texts(schema, path, needed, rest)).select(pl.all().cast(pl.String))
    row = 1
    try:
        for chunk in texts.collect_batches(chunk_size=_PARQUET_ROWS, maintain_order=True):
            yield Chunk(np.arange(row, row + chunk.height), chunk)
            row += chunk.height
    except (pl.exceptions.PolarsError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            f"{path} is cut or damaged after row {row - 1} ({shown(error)}). Fetch it anew."
        ) from error


def as_texts(
    schema: Mapping[str, pl.DataType], path: Path, needed: Sequence[str], rest: bool
) -> list[pl.Expr]:
    """Converts typed columns to strings; skips columns that can't be, or raises if needed."""
    columns = []
    for name, kind in schema.items():
        if name not in needed and (not rest or name == VECTORS):
            continue
        column = pl.col(name)
        if isinstance(kind, pl.Datetime):
            if kind.time_zone is not None:
                column = column.dt.convert_time_zone("UTC")
            column = column.dt.strftime("%Y-%m-%d %H:%M:%S%.f")
        # Lists are texts of items; a table of which only ids and times are read has none.
        elif rest and isinstance(kind, pl.List | pl.Array) and _is_text(kind.inner):
            column = column.cast(pl.List(pl.String)).list.join(", ", ignore_nulls=True)
        elif kind == pl.Binary:  # text without its type, as older programs write it
            decode = functools.partial(_decode, path=path, needed=name in needed)
            column = column.map_batches(decode, return_dtype=pl.String)
        elif kind.is_float() and name in needed:
            column = column.map_batches(functools.partial(_whole, path=path), pl.String)
        elif not _is_text(kind):
            told = f"{path}: column {name!r} is of type {shown(kind)}, which has no text"
            if name in needed:
                raise UserError(f"{told}. Write it as strings or numbers.")
            print(f"{told}: it is left out.", flush=True)
            continue
        columns.append(column)
    return columns


def _whole(values: pl.Series, path: Path) -> pl.Series:
    """Texts of floats; those of whole numbers without ".0", since programs store ids as floats.

    Raises:
      UserError: for a number so large that floats do not hold all of its neighbours.
    """
    numbers, most = values.fill_nan(None), 2**24 if values.dtype == pl.Float32 else 2**53
    large = numbers.filter((numbers.abs() >= most).fill_null(False))
    if large.len():
        raise UserError(
            f"{path}: column {values.name!r} holds {large[0]:.17g} as a float. Floats this large "
            "do not keep whole numbers apart. Write ids as strings, and times as whole seconds."
        )
    whole = numbers.cast(pl.Int64, strict=False)
    return (
        pl.select(
            pl.when(whole == numbers).then(whole.cast(pl.String)).otherwise(numbers.cast(pl.String))
        )
        .to_series()
        .alias(values.name)
    )


def _decode(values: pl.Series, path: Path, needed: bool) -> pl.Series:
    """Texts of bytes; where they are not UTF-8, that is told, or raised if they are needed."""
    texts: list[str | None] = []
    bad: bytes | None = None
    for value in values:
        try:
            texts.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            texts.append(None)
            bad = value if bad is None else bad
    if bad is not None:
        told = f"{path}: column {values.name!r} holds bytes that are not UTF-8 ({shown(repr(bad))})"
        if needed:
            raise UserError(f"{told}. Write it as strings.")
        print(f"{told}: they are left out.", flush=True)
    return pl.Series(values.name, texts, pl.String)


def _is_text(kind: Any) -> bool:
    """Whether values of this type can be written as text."""
    return not kind.is_nested() and kind not in (pl.Binary, pl.Object, pl.Duration)
