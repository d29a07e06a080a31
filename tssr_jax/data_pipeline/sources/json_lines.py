"""Reads files with one JSON object, or Python literal, a line; plain or compressed by gzip."""

import ast
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from tssr_jax.data_pipeline.sources.tables import open_bytes, require_content
from tssr_jax.errors import UserError

_BLOCK_BYTES = 32 * 2**20
_BOM = b"\xef\xbb\xbf"
BAD_LINES = "lines_skipped_as_malformed"
# An escaped surrogate; without its other half it can't be written as UTF-8.
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
Parser = Callable[[str], Any]
json_object: Parser = json.loads
python_literal: Parser = ast.literal_eval


class BadLines:
    """Skips and counts malformed lines, up to a number.

    Args:
      path: the file, for the error.
      most: number of lines that may be skipped.
      counts: gets the number of malformed lines, over all files of a source.
    """

    def __init__(self, path: Path, most: int, counts: Counter[str]):
        self.path, self._most, self.counts = path, most, counts

    def skip(self, number: int, content: bytes, error: Exception) -> None:
        """Counts a malformed line; raises UserError, naming the line, if it is one too many."""
        self.counts[BAD_LINES] += 1
        if self.counts[BAD_LINES] > self._most:
            reason = " ".join(str(error).split())
            start = content[:80].decode(errors="replace").strip()
            raise UserError(
                f"{self.path}, line {number}: {start!r} is malformed ({reason}). Correct it, or "
                "let malformed lines be skipped: "
                f"--config.data.max_bad_lines={self.counts[BAD_LINES]} or more."
            ) from error


def read_chunks(
    bad_lines: BadLines, fields: Mapping[str, Any]
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Reads some fields of a file of JSON objects, a chunk at a time.

    Args:
      bad_lines: names the file, and skips malformed lines.
      fields: names and polars types; absent fields are null.

    Yields:
      Line number of the first row, and rows. (Skipped lines are not counted in.)

    Raises:
      UserError: if too many lines are malformed, naming the line, or the file is cut or empty.
    """
    for line, block in _blocks(bad_lines.path):
        try:
            table = _parse(block, fields)
        except pl.exceptions.PolarsError:
            good = []
            for number, content in enumerate(block.splitlines(keepends=True), line):
                try:
                    if content.strip():
                        _parse(content, fields)
                        good.append(content)
                except pl.exceptions.PolarsError as error:
                    bad_lines.skip(number, content, error)
            if not good:
                continue
            table = _parse(b"".join(good), fields)
        yield line, table


def read_records(
    bad_lines: BadLines, parse: Parser, id_field: str, wanted: pl.Series
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads the objects that have a wanted id; counts the others without parsing them.

    Args:
      bad_lines: names the file, and skips malformed lines.
      parse: `json_object` or `python_literal`.
      id_field: name of the field with the id, a string.
      wanted: ids.

    Yields:
      Line number, and object.

    Raises:
      UserError: as for `read_chunks`.
    """
    known = set(wanted)
    pattern = re.compile(rf"""["']{id_field}["']\s*:\s*["']([^"']*)["']""")
    for first, block in _blocks(bad_lines.path):
        for number, content in enumerate(block.splitlines(), first):
            if not content.strip():
                continue
            try:
                text = content.decode()
                found = pattern.search(text)
                if found and found[1] not in known:
                    bad_lines.counts["item_rows_of_other_items"] += 1
                    continue
                record = parse(text)
                if not isinstance(record, dict) or not isinstance(record.get(id_field), str):
                    raise ValueError(f"no object with a field {id_field!r}")
                if _HALF_CHARACTER.search(text):
                    json.dumps(record, ensure_ascii=False, default=str).encode()
            except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
                bad_lines.skip(number, content, error)
                continue
            yield number, record


def _parse(block: bytes, fields: Mapping[str, Any]) -> pl.DataFrame:
    return pl.read_ndjson(io.BytesIO(block), schema=dict(fields))


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Whole lines, many at a time, with the number of the first."""
    require_content(path)
    line, rest = 1, b""
    try:
        with open_bytes(path) as file:
            while block := file.read(_BLOCK_BYTES):
                if line == 1 and not rest:
                    block = block.removeprefix(_BOM)
                end = block.rfind(b"\n") + 1
                whole = rest + block[:end] if end else b""
                rest = block[end:] if end else rest + block
                if whole:
                    yield line, whole
                    line += whole.count(b"\n")
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            f"{path} is cut or damaged after line {line - 1} ({error}). Fetch it anew."
        ) from error
    if rest:
        yield line, rest
