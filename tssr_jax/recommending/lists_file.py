"""Writes recommendations to a file, which appears only when it is complete.

.jsonl           a line for each history
.csv, .parquet   a row for each recommended item
"""

import csv
import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import polars as pl

from tssr_jax.recommending.histories import History
from tssr_jax.recommending.results import Recommendations

OUTPUTS = (".jsonl", ".csv", ".parquet")
SCHEMA = {
    "user": pl.String,
    "rank": pl.Int64,
    "item": pl.String,
    "title": pl.String,
    "score": pl.Float64,
    "id_weight": pl.Float64,
    "content_weight": pl.Float64,
    "popular": pl.Boolean,
}


class ListsFile:
    """A context manager that writes to a temporary file, and renames it if there is no error.

    Args:
      path: its name ends as one of `OUTPUTS`.
    """

    def __init__(self, path: Path):
        self._path = path
        # (Process ids are not unique among the machines that write to a folder.)
        own = uuid.uuid4().hex[:12]
        self._part = path.with_name(f".{path.name}.part-{own}")
        self._chunks = path.with_name(f".{path.name}.chunks-{own}")
        self._number = 0

    def __enter__(self) -> "ListsFile":
        if self._path.suffix == ".parquet":
            self._chunks.mkdir()
            return self
        # (An id may hold what is no text; as an escape it is still valid JSON.)
        self._file = self._part.open("w", newline="", encoding="utf8", errors="backslashreplace")
        if self._path.suffix == ".csv":
            csv.writer(self._file).writerow(SCHEMA)
        return self

    def write(self, histories: Sequence[History], lists: Sequence[Recommendations]) -> None:
        """Appends the lists of these histories."""
        pairs = list(zip(histories, lists, strict=True))
        if self._path.suffix == ".jsonl":
            self._file.writelines(
                json.dumps(_line(*pair), ensure_ascii=False) + "\n" for pair in pairs
            )
            return
        rows = (row for pair in pairs for row in list_rows(*pair))
        if self._path.suffix == ".csv":
            csv.writer(self._file).writerows(rows)
            return
        frame = pl.DataFrame(list(rows), schema=SCHEMA, orient="row")
        frame.write_parquet(self._chunks / f"{self._number:06}.parquet")
        self._number += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        try:
            if self._path.suffix != ".parquet":
                self._file.close()
            elif error is None:
                chunks = sorted(self._chunks.iterdir())
                table = (
                    pl.scan_parquet(chunks, glob=False) if chunks else pl.LazyFrame(schema=SCHEMA)
                )
                table.sink_parquet(self._part)
            if error is None:
                self._part.replace(self._path)
        finally:
            self._part.unlink(missing_ok=True)
            shutil.rmtree(self._chunks, ignore_errors=True)


def _line(history: History, result: Recommendations) -> dict[str, Any]:
    return {
        "user": history.user,
        "items": [item._asdict() for item in result.items],
        "stream_weights": result.stream_weights,
        "popular": result.popular,
        "unknown": list(result.unknown),
    }


def list_rows(history: History, result: Recommendations) -> Iterator[tuple[Any, ...]]:
    """A row of `SCHEMA` for each item of a list."""
    weights = result.stream_weights or {}
    streams = (weights.get("id"), weights.get("content"))
    for rank, item in enumerate(result.items, 1):
        yield (history.user, rank, *item, *streams, result.popular)
