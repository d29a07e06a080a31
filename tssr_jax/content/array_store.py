"""Arrays of one shape on disk, at most one per item: pictures, or states of an encoder.

They are stored in TFRecord shards in the cache's folder `images`, written once, and read for the
items of a batch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tssr_jax.data_pipeline import cache, digests, records
from tssr_jax.data_pipeline.tensorflow_cpu import tf, tfds

_ROWS, _REPORT, _NOTES = "rows.npy", "report.json", "notes.txt"
_BYTES_PER_SHARD = 2**28


class ArrayStore:
    """The arrays of a catalogue.

    Attributes:
      folder: the folder of the arrays; its `notes.txt` lists pictures that could not be read.
      rows: int32 [num_classes], the record of each item's array; -1 where it has none.
      shape: shape of an array.
      dtype: type of an array.
      counts: numbers of readable, missing and broken pictures when the store was made.
    """

    def __init__(self, folder: Path):
        report = json.loads((folder / _REPORT).read_text())
        self.folder = folder
        self.rows = np.load(folder / _ROWS)
        self.shape: tuple[int, ...] = tuple(report["shape"])
        self.dtype = np.dtype(report["dtype"])
        self.counts: dict[str, int] = report["counts"]
        self._read = records.RecordReader(folder / "arrays")

    @property
    def items(self) -> np.ndarray:
        """The items that have an array, ascending."""
        return np.flatnonzero(self.rows >= 0)

    def __call__(self, items: np.ndarray) -> np.ndarray:
        """The arrays of items int [number] that have one, [number, *shape]."""
        result = np.empty((items.size, *self.shape), self.dtype)
        for place, serialised in enumerate(self._read(self.rows[items])):
            value = tf.train.Example.FromString(serialised).features.feature["array"]
            flat = np.frombuffer(value.bytes_list.value[0], self.dtype)
            result[place] = flat.reshape(self.shape)
        return result


def find(cache_dir: str, key: str) -> ArrayStore | None:
    """The store of this key, if it was made before."""
    folder = cache.find_folder(cache_dir, f"images/{key}")
    return None if folder is None else ArrayStore(folder)


def write(
    cache_dir: str,
    key: str,
    arrays: Iterable[tuple[int, np.ndarray]],
    num_classes: int,
    *,
    counts: Mapping[str, int],
    notes: Sequence[str],
) -> ArrayStore:
    """Writes a store beside its place and renames it.

    Args:
      cache_dir: see `tssr_jax.data_pipeline.cache`.
      key: identifies the contents.
      arrays: (item, array), at least one; items ascend, shapes and types are the same.
      num_classes: items and padding.
      counts: counts for the report; read after all arrays are written.
      notes: a line for each picture that could not be read; read after all arrays are written.
    """
    name = f"images/{key}"
    folder = cache.local_folder(cache_dir) / name
    part = cache.incomplete(folder)
    part.mkdir(parents=True)
    try:
        kind = _write_arrays(part, arrays, num_classes)
        report = kind | {"counts": dict(counts)}
        (part / _REPORT).write_text(json.dumps(report, indent=2) + "\n")
        (part / _NOTES).write_text("".join(f"{line}\n" for line in notes))
        digests.write(part)
        if not folder.exists():  # another process may have been faster; its result is the same
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    cache.share(cache_dir, name)
    return ArrayStore(folder)


def _write_arrays(
    part: Path, arrays: Iterable[tuple[int, np.ndarray]], num_classes: int
) -> dict[str, object]:
    numbered = iter(arrays)
    first_item, first = next(numbered)
    rows = np.full(num_classes, -1, np.int32)

    def examples() -> Iterator[bytes]:
        rows[first_item] = 0
        yield _example(first_item, first)
        for row, (item, array) in enumerate(numbered, 1):
            rows[item] = row
            yield _example(item, array)

    encoding = tfds.features.Encoding.BYTES
    features = {
        "item": tfds.features.Scalar(np.int32),
        "array": tfds.features.Tensor(shape=first.shape, dtype=first.dtype, encoding=encoding),
    }
    records.write(
        examples(),
        part / "arrays",
        features,
        per_shard=max(1, _BYTES_PER_SHARD // first.nbytes),
        description="Images of the items of a catalogue, or what an encoder makes of them.",
    )
    np.save(part / _ROWS, rows)
    return {"shape": first.shape, "dtype": first.dtype.name}


def _example(item: int, array: np.ndarray) -> bytes:
    return records.example(
        item=records.integers([item]), array=records.bytes_feature(array.tobytes())
    )
