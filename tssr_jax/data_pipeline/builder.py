"""The prepared data set on disk: TFRecord shards that TensorFlow Datasets reads.

Two data sets in one folder, since users and items have different features:

    users   {user_id, items, times}        split "rows", user u is example u
    items   {item_id, title, text, image}  split "rows", item i is example i - 1

Times are seconds since 1970. Where the data is read with them, users also have `event`, the number
of each interaction's event from 1, and `weight`. `tfds.builder_from_directory(folder / "users")`
reads both anywhere.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.progress import track

from tssr_jax.data_pipeline import records
from tssr_jax.data_pipeline.interactions import MORE
from tssr_jax.data_pipeline.sequences import Sequences, Taken
from tssr_jax.data_pipeline.tensorflow_cpu import tf, tfds

# Folders of the two data sets.
USERS, ITEMS = "users", "items"
# File in the folder of users: int64, the length of each sequence.
_LENGTHS = "lengths.npy"
_READ_BATCH = 4096
USERS_PER_SHARD = 200_000  # examples of a file
_DESCRIPTION = "Implicit feedback as time-ordered sequences, with texts of the items."
# With more users than this, writing takes long enough for a progress bar.
_LONG = 50_000


def _features_of_users(more: Iterable[str]) -> dict[str, object]:
    kinds: dict[str, Any] = {"event": np.int64, "weight": np.float32}
    numbers = {"items": np.int32, "times": np.int64, **{name: kinds[name] for name in more}}
    lists = {n: tfds.features.Sequence(tfds.features.Scalar(kind)) for n, kind in numbers.items()}
    return {"user_id": tfds.features.Text(), **lists}


def _features_of_items() -> dict[str, object]:
    return {name: tfds.features.Text() for name in ("item_id", "title", "text", "image")}


def _sequence_spec(more: Iterable[str]) -> dict[str, object]:
    return {
        name: tf.io.RaggedFeature(
            tf.float32 if name == "weight" else tf.int64, row_splits_dtype=tf.int64
        )
        for name in ("items", "times", *more)
    }


def more_columns(folder: Path) -> tuple[str, ...]:
    """Which of `interactions.MORE` the prepared users have."""
    features = json.loads((folder / USERS / records.VERSION / "features.json").read_text())
    there = features["featuresDict"]["features"]
    return tuple(name for name in MORE if name in there)


def write(
    sequences: Sequences,
    items: pl.DataFrame,
    folder: Path,
    write_users: Callable[[Path], list[np.ndarray]] | None = None,
    more: Sequence[str] = (),
) -> None:
    """Writes both data sets below `folder`.

    Args:
      sequences: the users' sequences.
      items: columns `item`, `title`, `text`, `image`, row i is item i + 1.
      folder: an existing folder.
      write_users: writes the files of users into a folder, `USERS_PER_SHARD` in each, and returns
        the sizes of their examples, see `records.write_shard`. By default from `sequences.parts`.
      more: which of `interactions.MORE` the interactions have.
    """
    sizes = (write_users or functools.partial(_write_users, sequences))(folder / USERS)
    features = _features_of_users(more)
    records.finish(folder / USERS, features, sizes, description=_DESCRIPTION)
    np.save(folder / USERS / _LENGTHS, sequences.lengths)
    records.write(
        _item_examples(items),
        folder / ITEMS,
        _features_of_items(),
        per_shard=USERS_PER_SHARD,
        description=_DESCRIPTION,
    )


def _write_users(sequences: Sequences, folder: Path) -> list[np.ndarray]:
    number = len(sequences.lengths)
    bar = (_all_examples(sequences), "Writing sequences", number)
    stream = iter(track(*bar, disable=number < _LONG))
    shards = range(-(-number // USERS_PER_SHARD))
    return [
        records.write_shard(folder, i, itertools.islice(stream, USERS_PER_SHARD)) for i in shards
    ]


def read_sequences(
    folder: Path,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
    """All sequences, one after the other.

    Returns:
      Items int32 and minutes int32 [num_interactions]; offsets int64 [num_users + 1]; and, where
      the data has them, `event` int32 and `weight` float32 [num_interactions].
    """
    batches = [
        (_columns(batch), batch["items"].row_lengths())
        for batch in _batches(folder, USERS, _sequence_spec(more_columns(folder)))
    ]
    columns = {name: tf.concat([own[name] for own, _ in batches], axis=0) for name in batches[0][0]}
    lengths = tf.concat([own for _, own in batches], axis=0)
    offsets = tf.concat([[0], tf.cumsum(lengths)], axis=0)
    return columns.pop("items"), columns.pop("minutes"), offsets, columns


def _columns(batch: Mapping[str, tf.RaggedTensor]) -> dict[str, tf.Tensor]:
    flat = {name: values.flat_values for name, values in batch.items()}
    columns = {"items": tf.cast(flat["items"], tf.int32), "minutes": _minutes(flat["times"])}
    if "event" in flat:
        columns["event"] = tf.cast(flat["event"], tf.int32)
    return columns | ({"weight": flat["weight"]} if "weight" in flat else {})


def _minutes(seconds: tf.Tensor) -> tf.Tensor:
    """Minutes since 1970, int32, which spans 4,000 years in each direction."""
    return tf.cast(seconds // 60, tf.int32)


class SequenceReader:
    """Reads single sequences from the shards, in any order.

    Attributes:
      lengths: int64 [num_users].

    Args:
      folder: holds the data set of users.
    """

    def __init__(self, folder: Path):
        self.lengths = np.load(folder / USERS / _LENGTHS)
        self._spec = _sequence_spec(more_columns(folder))
        self._read = records.RecordReader(folder / USERS)

    def __call__(self, users: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Columns of `store.Rows` of users int64 [rows], and offsets int64 [rows + 1]."""
        examples = tf.numpy_function(self._read, [users], tf.string)
        batch = tf.io.parse_example(tf.ensure_shape(examples, users.shape), self._spec)
        return _columns(batch), batch["items"].row_splits


def _batches(folder: Path, name: str, spec: Mapping[str, object]) -> Iterator[dict]:
    files = [str(path) for path in records.shards(folder / name)]
    serialised = tf.data.TFRecordDataset(files).batch(_READ_BATCH)
    return iter(serialised.map(lambda batch: tf.io.parse_example(batch, spec)).prefetch(2))


def _all_examples(sequences: Sequences) -> Iterator[bytes]:
    ends, first, read = np.cumsum(sequences.lengths), 0, 0
    for own in sequences.parts():
        read += own.items.size
        some = slice(first, int(np.searchsorted(ends, read, "right")))
        yield from user_examples(sequences.user_ids[some], sequences.lengths[some], own)
        first = some.stop


def user_examples(ids: pl.Series, lengths: np.ndarray, taken: Taken) -> Iterator[bytes]:
    """An example for each of some users.

    Args:
      ids: the owner's ids.
      lengths: int [users].
      taken: the users' interactions.
    """
    start = 0
    for user, length in zip(ids, lengths.tolist(), strict=True):
        own = slice(start, start + length)
        more = {
            name: (records.floats if name == "weight" else records.integers)(values[own].tolist())
            for name, values in taken.more.items()
        }
        yield records.example(
            user_id=_text(user),
            items=records.integers(taken.items[own].tolist()),
            times=records.integers(taken.times[own].tolist()),
            **more,
        )
        start = own.stop


def _item_examples(items: pl.DataFrame) -> Iterator[bytes]:
    for item, title, text, image in items.select("item", "title", "text", "image").iter_rows():
        yield records.example(
            item_id=_text(item), title=_text(title), text=_text(text), image=_text(image)
        )


def _text(value: str) -> tf.train.Feature:
    return records.bytes_feature(value.encode())
