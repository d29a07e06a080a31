r"""Reads delimited text by RFC 4180, without losing a row.

- A field that begins with a double quote ends at the next one; two of them stand for one. Such a
  field may hold separators and line ends. A quote inside of another field is a character.
- A field of a needed column (an id, a time) may not hold line ends, and no field may hold what look
  like rows: a quote is missing there, and rows would be lost.
- Every row has as many fields as the header. Empty lines are skipped.
- Files in which a backslash escapes quotes are read, if they can't be read by RFC 4180.

Blocks of lines without a quote are split by polars, blocks with quotes by Python's `csv`.
"""

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from tssr_jax.data_pipeline.sources.text_files import Block, read_blocks
from tssr_jax.errors import UserError, shown

# Tried in turn where a comma finds no needed column in the header.
_OTHER_SEPARATORS = (";", "\t", "|")
# An open quote is told before it has swallowed the rest of the file.
_LONGEST_FIELD = 2**24
_NAMES_SHOWN = 200


class Format(NamedTuple):
    """How a table is written.

    Attributes:
      separator: one character; with ",", another one is found if the header has it.
      columns: names for a file without a header; () reads the header line.
      encoding: of a file that is not UTF-8, see `text_files`.
      quoted: whether double quotes enclose fields.
    """

    separator: str = ","
    columns: tuple[str, ...] = ()
    encoding: str = ""
    quoted: bool = True


class Chunk(NamedTuple):
    """Some rows of a table.

    Attributes:
      lines: int64 [rows], the number of the line of the file where each row begins.
      table: strings, null where a field is empty.
    """

    lines: np.ndarray
    table: pl.DataFrame


class Header(NamedTuple):
    """The header of a table.

    Attributes:
      names: of the columns.
      separator: of the fields.
      lines: how many lines of the file come before the first row.
    """

    names: tuple[str, ...]
    separator: str
    lines: int


def read_delimited(
    path: Path, form: Format, needed: Sequence[str], hint: str, rest: bool
) -> Iterator[Chunk]:
    """Reads a table a chunk at a time, see `tables.read_chunks`."""
    blocks = read_blocks(path, form.encoding)
    first = next(blocks)
    header = _header(path, form, needed, first)
    require_columns(header.names, needed, path, hint)
    wanted = [i for i, name in enumerate(header.names) if rest or name in needed]
    splitter = _Splitter(path, header, wanted, [header.names.index(name) for name in needed])
    for block in itertools.chain([first], blocks):
        if block.line <= header.lines:  # the first one
            content = block.content.split(b"\n", header.lines)[-1]
            block = Block(1 + header.lines, content)  # noqa: PLW2901
        if not form.quoted or b'"' not in block.content:
            yield splitter.plain(block)
        else:
            yield splitter.quoted(block, blocks)


def read_names(path: Path, form: Format, needed: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of a file's columns; raises UserError if two are alike.

    Args:
      path: the file.
      form: how it is written; another separator is found by the columns that are needed.
      needed: columns that should be there.
    """
    return _header(path, form, needed, next(read_blocks(path, form.encoding))).names


def _header(path: Path, form: Format, needed: Sequence[str], block: Block) -> Header:
    """The header, by the first block; for a file without one, what stands in its place."""
    if form.columns:
        return Header(form.columns, form.separator, 0)
    line, number = b"", 0
    for number, line in enumerate(block.lines(), 1):  # noqa: B007 - read below
        if line.strip():
            break
    text, separator = line.decode(), form.separator
    if form.quoted and text.count('"') % 2:
        raise UserError(
            f"{path}, line {number}: the header has a quote that is not closed in its line: "
            f"{shown(text)}"
        )
    names = _fields(text, separator, form.quoted)
    if separator == "," and not set(needed) <= set(names):
        for other in _OTHER_SEPARATORS:
            found = _fields(text, other, form.quoted)
            if len(found) > 1 and set(needed) <= set(found):
                print(f"{path}: fields are separated by {other!r}.", flush=True)
                names, separator = found, other
                break
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise UserError(f"{path} has two columns {shown(repr(twice))}. Rename one.")
    return Header(tuple(names), separator, number)


def _fields(line: str, separator: str, quoted: bool) -> list[str]:
    if quoted and '"' in line:
        return next(csv.reader([line], delimiter=separator))
    return line.split(separator)


def require_columns(names: Sequence[str], needed: Sequence[str], path: Path, hint: str) -> None:
    """Raises UserError if a column is missing, naming those that are there."""
    missing = [name for name in needed if name not in names]
    if missing:
        found = shown(", ".join(map(repr, names)), _NAMES_SHOWN)
        raise UserError(
            f"{path} has no column {', '.join(map(repr, missing))}; its header line names "
            f"{found}. {hint}"
        )


class _Splitter:
    """Splits blocks of lines into rows of the wanted columns."""

    def __init__(self, path: Path, header: Header, wanted: list[int], needed: list[int]):
        self._path, self._header = path, header
        self._wanted, self._needed = wanted, needed
        self._names = [header.names[i] for i in wanted]
        self._escaped = False  # whether a backslash escapes quotes

    def plain(self, block: Block) -> Chunk:
        """The rows of a block without quoted fields."""
        content, separator = block.content, self._header.separator.encode()
        width = len(self._header.names)
        others = bytes(set(range(256)) - {separator[0], ord("\n")})
        number = content.count(b"\n")
        lines = np.arange(block.line, block.line + number)
        regular = content.translate(None, others)
        if width == 1 or regular != (separator * (width - 1) + b"\n") * number:
            rows = [(i, row) for i, row in enumerate(block.lines(), block.line) if row.strip()]
            for line, row in rows:
                self._require_width(line, row.count(separator) + 1)
            lines = np.array([line for line, _ in rows], np.int64)
            content = b"".join(row + b"\n" for _, row in rows)
        if not lines.size:
            return self._chunk([], [])
        table = pl.read_csv(
            content,
            has_header=False,
            new_columns=[f"{i}" for i in range(width)],
            columns=self._wanted,
            separator=self._header.separator,
            quote_char=None,
            infer_schema=False,
        )
        if table.height != lines.size:
            raise RuntimeError(f"{self._path}: polars read {table.height} of {lines.size} rows")
        return Chunk(lines, table.rename(dict(zip(table.columns, self._names, strict=True))))

    def quoted(self, block: Block, more: Iterator[Block]) -> Chunk:
        """The rows of a block with quotes; takes further blocks until its last row ends."""
        source = _Lines(block, more, escaped=self._escaped)
        try:
            return self._parsed(source)
        except _QuoteError as error:
            content = source.content()
            if self._escaped or b'\\"' not in content:
                raise error.told from error
            try:
                chunk = self._parsed(_Lines(Block(block.line, content), more, escaped=True))
            except _QuoteError:
                raise error.told from error
            self._escaped = True
            print(f"{self._path}: a backslash escapes quotes.", flush=True)
            return chunk

    def _parsed(self, source: "_Lines") -> Chunk:
        csv.field_size_limit(_LONGEST_FIELD)
        reader = csv.reader(source, delimiter=self._header.separator, strict=True)
        rows: list[list[str | None]] = []
        lines: list[int] = []
        while True:
            start = source.begin_row()
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise _QuoteError(
                    UserError(
                        f"{self._path}, line {start}: a quote opens or closes a field where none "
                        f"should ({shown(error)}). Double quotes inside of a quoted field, and "
                        "enclose fields with separators or line ends in quotes."
                    )
                ) from error
            if row is None:
                return self._chunk(rows, lines)
            if row and (len(row) > 1 or row[0].strip()):
                try:
                    self._require_width(start, len(row))
                    self._require_one_row(start, row, source.lines_of_row)
                except UserError as error:
                    raise _QuoteError(error) from error
                rows.append([row[i] or None for i in self._wanted])
                lines.append(start)

    def _chunk(self, rows: list[list[str | None]], lines: list[int]) -> Chunk:
        schema = dict.fromkeys(self._names, pl.String)
        return Chunk(np.array(lines, np.int64), pl.DataFrame(rows, schema, orient="row"))

    def _require_width(self, line: int, width: int) -> None:
        expected = len(self._header.names)
        if width == expected:
            return
        wanted = f"line {self._header.lines} has {expected}"
        if not self._header.lines:
            wanted = f"{expected} belong there: {shown(', '.join(self._header.names), 300)}"
        more = f"Is a {self._header.separator!r} inside of a field not enclosed in quotes?"
        fewer = "Is a row broken into two lines, or are its last separators missing?"
        raise UserError(
            f"{self._path} is not a readable table: line {line} has {width} fields, {wanted}. "
            f"{more if width > expected else fewer}"
        )

    def _require_one_row(self, line: int, row: list[str], lines: list[str]) -> None:
        """Raises UserError if a row over several lines has probably swallowed others."""
        if len(lines) == 1:
            return
        separators = len(self._header.names) - 1
        broken = next((self._header.names[i] for i in self._needed if "\n" in row[i]), "")
        if broken:
            told = f"column {broken!r} holds a line end"
        elif separators and all(own.count(self._header.separator) == separators for own in lines):
            told = "each of these lines looks like a row of its own"
        else:
            return
        raise UserError(
            f"{self._path}, lines {line} to {line + len(lines) - 1}: a quoted field goes on over "
            f"{len(lines)} lines, and {told}. Is a quote missing, or one too many? Double quotes "
            "inside of a quoted field; write a space for a line end in a text."
        )


class _QuoteError(Exception):
    """A row that is not by RFC 4180.

    Attributes:
      told: the error for people.
    """

    def __init__(self, told: UserError):
        super().__init__(str(told))
        self.told = told


class _Lines:
    """The lines of a block, and further ones for as long as a row is not at its end.

    Attributes:
      lines_of_row: the lines of the row that is read.

    Args:
      block: the first lines.
      more: takes further blocks from here.
      escaped: whether a backslash escapes quotes; lines have doubled quotes instead.
    """

    def __init__(self, block: Block, more: Iterator[Block], *, escaped: bool):
        self._blocks, self._more, self._escaped = [block], more, escaped
        self._lines = self._of(block)
        self._next = block.line  # number of the next line
        self.lines_of_row: list[str] = []

    def _of(self, block: Block) -> Iterator[bytes]:
        content = _with_doubled_quotes(block.content) if self._escaped else block.content
        return iter(Block(block.line, content).lines())

    def content(self) -> bytes:
        """All lines that were taken from blocks, as the file has them."""
        return b"".join(block.content for block in self._blocks)

    def begin_row(self) -> int:
        """Tells that a row has ended; returns the number of the line where the next one begins."""
        self.lines_of_row = []
        return self._next

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._lines, None)
        if line is None and self.lines_of_row and (block := next(self._more, None)):
            self._blocks.append(block)
            self._lines = self._of(block)
            line = next(self._lines, None)
        if line is None:
            raise StopIteration
        self._next += 1
        self.lines_of_row.append(line.decode())
        return self.lines_of_row[-1] + "\n"


def _with_doubled_quotes(content: bytes) -> bytes:
    r"""Text in which \" became ""; the quote of \\" is none that is escaped."""
    parts = content.split(b"\\\\")
    return b"\\\\".join(part.replace(b'\\"', b'""') for part in parts)
