"""Reads files with one JSON object, or Python literal, a line."""

import ast
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tssr_jax.data_pipeline.sources.delimited import Chunk
from tssr_jax.data_pipeline.sources.ids import loose
from tssr_jax.data_pipeline.sources.text_files import Block, read_blocks
from tssr_jax.errors import UserError, shown

BAD_LINES = "lines_skipped_as_malformed"
# An escaped surrogate; without its other half it can't be written as UTF-8.
# How polars writes objects, lists, and true or false; strings may look alike.
_MAYBE_NO_TEXT = r"^(?:[\[{]|true$|false$)"
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


class BadLines:
    """Skips and counts malformed lines, up to a number.

    Args:
      path: the file, for the error.
      most: number of lines that may be skipped.
      counts: gets the number of malformed lines, over all files of a source.
    """

    def __init__(self, path: Path, most: int, counts: Counter[str]):
        self.path, self._most, self.counts = path, most, counts
        self._good = 0

    def kept(self, number: int) -> None:
        """Tells of lines that are not malformed."""
        self._good += number

    def skip(self, number: int, content: bytes, error: Exception) -> None:
        """Counts a malformed line; raises UserError, naming the line, if it is one too many."""
        self.counts[BAD_LINES] += 1
        if self.counts[BAD_LINES] <= self._most:
            return
        start = content[:80].decode(errors="replace").strip()
        told = f"{self.path}, line {number}: {start!r} is malformed ({shown(error)})."
        if not self._good:
            raise UserError(
                f"{told} No line before it could be read. Each line must be an object of its own."
            ) from error
        raise UserError(
            f"{told} Correct it, or let malformed lines be skipped: "
            f"--config.data.max_bad_lines={self.counts[BAD_LINES]} or more."
        ) from error


def read_chunks(bad_lines: BadLines, fields: Sequence[str]) -> Iterator[Chunk]:
    """Reads some fields of a file of JSON objects, a chunk at a time.

    Args:
      bad_lines: names the file, and skips malformed lines.
      fields: names; values become strings, absent ones null.

    Raises:
      UserError: if too many lines are malformed, naming the line, or the file is cut or empty.
    """
    for block in _objects(bad_lines.path):
        lines = [(i, line) for i, line in enumerate(block.lines(), block.line) if line.strip()]
        numbers = [number for number, _ in lines]
        try:
            table = _parse(block.content, fields, len(lines))
        except (pl.exceptions.PolarsError, ValueError):
            good = []
            for number, line in lines:
                try:
                    _parse(line, fields, 1)
                    good.append((number, line))
                    bad_lines.kept(1)
                except (pl.exceptions.PolarsError, ValueError) as error:
                    bad_lines.skip(number, line, error)
            if not good:
                continue
            table = _parse(b"\n".join(line for _, line in good), fields, len(good))
            numbers = [number for number, _ in good]
        bad_lines.kept(len(numbers))
        yield Chunk(np.array(numbers, np.int64), table)


def read_records(
    bad_lines: BadLines, id_field: str, wanted: pl.Series
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads the objects that have a wanted id, or one alike; counts the others.

    A line is JSON or, if it is not, a Python literal, as Amazon's of 2014 are.

    Args:
      bad_lines: names the file, and skips malformed lines.
      id_field: name of the field with the id, a string or a number.
      wanted: ids.

    Yields:
      Line number, and object; its id is a string without white space around it. Objects whose id
      is written otherwise, but alike (`ids.loose`), are among them.

    Raises:
      UserError: as for `read_chunks`.
    """
    known = {loose(item) for item in wanted}
    named = re.compile(rf"""["']{id_field}["']\s*:""")
    plain = re.compile(rf"""["']{id_field}["']\s*:\s*(?:"([^"\\]*)"|'([^'\\]*)')""")
    for block in _objects(bad_lines.path):
        for number, content in enumerate(block.lines(), block.line):
            if not content.strip():
                continue
            text = content.decode()
            # Saves time, and decides nothing: skips objects with plain strings as ids (also those
            # of inner objects) of which none is wanted.
            if "\\u" not in text:
                ids = [one or other for one, other in plain.findall(text)]
                all_plain = bool(ids) and len(ids) == len(named.findall(text))
                if all_plain and known.isdisjoint(map(loose, ids)):
                    bad_lines.counts["item_rows_of_other_items"] += 1
                    continue
            try:
                record = parse_object(text)
                record[id_field] = _id(record, id_field)
            except ValueError as error:
                bad_lines.skip(number, content, error)
                continue
            bad_lines.kept(1)
            if loose(record[id_field]) in known:
                yield number, record
            else:
                bad_lines.counts["item_rows_of_other_items"] += 1


def parse_object(text: str) -> dict[str, Any]:
    """An object, written as JSON or as a Python literal.

    Raises:
      ValueError: if it is none, or holds half a character, which can't be written.
    """
    try:
        try:
            found = json.loads(text)
        except ValueError:
            if not text.lstrip().startswith("{'"):
                raise
            found = ast.literal_eval(text.strip())
        if _HALF_CHARACTER.search(text):
            json.dumps(found, ensure_ascii=False, default=str).encode()
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(shown(error)) from error
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def _id(record: dict[str, Any], field: str) -> str:
    value = record.get(field)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"no object with a field {field!r}")
    return str(value).strip()


def _parse(content: bytes, fields: Sequence[str], rows: int) -> pl.DataFrame:
    table = pl.read_ndjson(io.BytesIO(content), schema=dict.fromkeys(fields, pl.String))
    if table.height != rows:
        raise ValueError(f"{rows} lines have {table.height} objects")
    if table.select(pl.any_horizontal(pl.all().str.contains(_MAYBE_NO_TEXT)).any()).item():
        for line in content.split(b"\n"):
            if line.strip():
                _require_texts(json.loads(line), fields)
    return table


def _require_texts(record: dict[str, Any], fields: Sequence[str]) -> None:
    """Raises ValueError if a field is neither a string nor a number: polars writes JSON then."""
    for field in fields:
        if isinstance(record.get(field), bool | list | dict):
            raise ValueError(f"field {field!r} is neither a string nor a number")


def _objects(path: Path) -> Iterator[Block]:
    """The blocks of a file of objects."""
    for block in read_blocks(path):
        if block.line == 1 and block.content.lstrip().startswith(b"["):
            raise UserError(
                f"{path} is one JSON array; it must have one object a line. Convert it, for "
                "example: jq -c '.[]' FILE."
            )
        yield block
