"""Reads delimited text and Parquet: whole, or a chunk at a time; plain or compressed by gzip."""

import csv
import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import polars as pl

from tssr_jax.errors import UserError

ROWS_PER_CHUNK = 1_000_000
_GZIP = b"\x1f\x8b"


def open_bytes(path: Path) -> IO[bytes]:
    """Opens a file; decompresses it if its contents are gzip, whatever its name."""
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


def require_content(path: Path) -> None:
    """Raises UserError if a file is empty."""
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty.")


def read_table(
    path: Path,
    separator: str = ",",
    *,
    columns: Sequence[str] | None = None,
    encoding: str = "utf8",
    quoted: bool = True,
) -> pl.DataFrame:
    """Reads a delimited file whole, with all columns as strings.

    Args:
      path: the file; a name that ends in .parquet is read as Parquet.
      separator: one character.
      columns: names for a file without a header; None reads the header line.
      encoding: "utf8", or a Python codec such as "latin-1".
      quoted: whether double quotes enclose fields.

    Raises:
      UserError: if the file is empty, or not a table in that encoding.
    """
    if encoding == "utf8":
        chunks = [c for _, c in read_chunks(path, separator, columns=columns, quoted=quoted)]
        return pl.concat(chunks)
    require_content(path)
    try:
        return pl.read_csv(
            path,
            separator=separator,
            has_header=columns is None,
            new_columns=columns,
            infer_schema=False,
            encoding=encoding,
            quote_char='"' if quoted else None,
        )
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable table: {_one_line(error)}") from error


def read_chunks(
    path: Path,
    separator: str = ",",
    *,
    columns: Sequence[str] | None = None,
    wanted: Sequence[str] | None = None,
    hint: str = "",
    quoted: bool = True,
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Reads a UTF-8 file (or Parquet) a chunk at a time, with all columns as strings.

    Args:
      path: the file.
      separator: one character.
      columns: names for a file without a header; None reads the header line.
      wanted: the columns to read; all by default.
      hint: what to do if one of them is missing.
      quoted: whether double quotes enclose fields.

    Yields:
      Line number of the first row, and rows. (Line breaks inside of quotes are not counted.)

    Raises:
      UserError: if the file is empty, damaged, lacks a column, or is not a table in UTF-8.
    """
    require_content(path)
    parquet = path.suffix == ".parquet"
    line = 1 if parquet or columns is not None else 2
    try:
        if parquet:
            table = pl.scan_parquet(path)
        else:
            table = pl.scan_csv(
                path,
                separator=separator,
                has_header=columns is None,
                new_columns=None if columns is None else list(columns),
                infer_schema=False,
                quote_char='"' if quoted else None,
            )
        names = table.collect_schema().names()
        if wanted is not None:
            require_columns(names, wanted, path, hint)
            table = table.select(wanted)
        if parquet:
            table = table.select(_as_texts(table.collect_schema(), path, wanted))
        first = line
        for chunk in table.select(pl.all().cast(pl.String)).collect_batches(
            chunk_size=ROWS_PER_CHUNK, maintain_order=True
        ):
            yield line, chunk
            line += chunk.height
    except (pl.exceptions.PolarsError, OSError, EOFError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        where = "" if parquet else _find_bad_line(path, separator, quoted)
        raise UserError(f"{path} is not a readable table: {where or _one_line(error)}") from error
    if line == first:
        raise UserError(f"{path} has a header but no rows.")


def column_names(path: Path) -> list[str]:
    """The names of a table's columns; none if it can't be read, which reading it tells."""
    try:
        if path.suffix == ".parquet":
            return pl.scan_parquet(path).collect_schema().names()
        return pl.scan_csv(path, infer_schema=False).collect_schema().names()
    except (pl.exceptions.PolarsError, OSError):
        return []


def _as_texts(
    schema: Mapping[str, pl.DataType], path: Path, wanted: Sequence[str] | None
) -> list[pl.Expr]:
    """Converts typed columns to strings; skips columns that can't be, or raises if wanted."""
    columns = []
    for name, kind in schema.items():
        column = pl.col(name)
        if isinstance(kind, pl.Datetime):
            if kind.time_zone is not None:
                column = column.dt.convert_time_zone("UTC")
            column = column.dt.strftime("%Y-%m-%d %H:%M:%S%.f")
        elif isinstance(kind, pl.List | pl.Array) and _is_text(kind.inner):
            column = column.cast(pl.List(pl.String)).list.join(", ", ignore_nulls=True)
        elif kind == pl.Binary:  # text without its type, as older programs write it
            column = column.map_batches(_decode, return_dtype=pl.String)
        elif not _is_text(kind):
            if wanted is not None:
                raise UserError(
                    f"{path}: column {name!r} is of type {kind}, which has no text. Write it as "
                    "strings or numbers."
                )
            continue
        columns.append(column)
    return columns


def _decode(values: pl.Series) -> pl.Series:
    texts = [None if value is None else value.decode(errors="replace") for value in values]
    return pl.Series(values.name, texts, pl.String)


def _is_text(kind: Any) -> bool:
    """Whether values of this type can be written as text."""
    return not kind.is_nested() and kind not in (pl.Binary, pl.Object, pl.Duration)


def require_columns(names: Sequence[str], wanted: Sequence[str], path: Path, hint: str) -> None:
    """Raises UserError if a column is missing, naming those that are there."""
    missing = [name for name in wanted if name not in names]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(map(repr, missing))}; its header line names "
            f"{', '.join(map(repr, names))}. {hint}"
        )


def _find_bad_line(path: Path, separator: str, quoted: bool) -> str:
    """Describes the first bad line of a file that polars refused; "" if none is found."""
    number, width = 0, 0
    try:
        with open_bytes(path) as file:
            for number, content in enumerate(file, 1):
                text = content.decode("utf-8-sig" if number == 1 else "utf-8")
                row = text.split(separator)
                if quoted:
                    row = next(csv.reader(io.StringIO(text), delimiter=separator), [])
                if number == 1:
                    width = len(row)
                elif len(row) > width:
                    return (
                        f"line {number} has {len(row)} fields, line 1 has {width}. Is a "
                        f"{separator!r} inside of a field not enclosed in quotes?"
                    )
    except UnicodeDecodeError as error:
        return (
            f"line {number} is not UTF-8 (byte {error.object[error.start]:#04x} at its place "
            f"{error.start + 1}). Convert the file, for example: iconv -f latin1 -t utf8."
        )
    except (EOFError, OSError) as error:
        return f"it is cut or damaged after line {number} ({error}). Fetch it anew."
    return ""


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
