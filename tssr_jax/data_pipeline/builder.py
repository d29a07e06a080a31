"""The prepared data set on disk: TFRecord shards that TensorFlow Datasets reads.

Two data sets in one folder, since users and items have different features:

    users   {user_id, items, times}        split "rows", user u is example u
    items   {item_id, title, text, image}  split "rows", item i is example i - 1

Times are seconds since 1970. `tfds.builder_from_directory(folder / "users")` reads both anywhere.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
from rich.progress import track

from tssr_jax.data_pipeline import records
from tssr_jax.data_pipeline.sequences import Sequences
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


def _features_of_users() -> dict[str, object]:
    numbers = {"items": np.int32, "times": np.int64}
    lists = {n: tfds.features.Sequence(tfds.features.Scalar(kind)) for n, kind in numbers.items()}
    return {"user_id": tfds.features.Text(), **lists}


def _features_of_items() -> dict[str, object]:
    return {name: tfds.features.Text() for name in ("item_id", "title", "text", "image")}


def _sequence_spec() -> dict[str, object]:
    return {
        name: tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)
        for name in ("items", "times")
    }


def write(
    sequences: Sequences,
    items: pl.DataFrame,
    folder: Path,
    write_users: Callable[[Path], list[np.ndarray]] | None = None,
) -> None:
    """Writes both data sets below `folder`.

    Args:
      sequences: the users' sequences.
      items: columns `item`, `title`, `text`, `image`, row i is item i + 1.
      folder: an existing folder.
      write_users: writes the files of users into a folder, `USERS_PER_SHARD` in each, and returns
        the sizes of their examples, see `records.write_shard`. By default from `sequences.parts`.
    """
    sizes = (write_users or functools.partial(_write_users, sequences))(folder / USERS)
    records.finish(folder / USERS, _features_of_users(), sizes, description=_DESCRIPTION)
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


def read_sequences(folder: Path) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Items int32 and minutes int32 [num_interactions], and offsets int64 [num_users + 1]."""
    items, minutes, lengths = [], [], []
    for batch in _batches(folder, USERS, _sequence_spec()):
        items.append(tf.cast(batch["items"].flat_values, tf.int32))
        minutes.append(_minutes(batch["times"].flat_values))
        lengths.append(batch["items"].row_lengths())
    offsets = tf.concat([[0], tf.cumsum(tf.concat(lengths, axis=0))], axis=0)
    return tf.concat(items, axis=0), tf.concat(minutes, axis=0), offsets


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
        self._read = records.RecordReader(folder / USERS)

    def __call__(self, users: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Items and minutes (int32) of users int64 [rows], side by side, and offsets int64."""
        examples = tf.numpy_function(self._read, [users], tf.string)
        batch = tf.io.parse_example(tf.ensure_shape(examples, users.shape), _sequence_spec())
        items, times = (batch[name].flat_values for name in ("items", "times"))
        return tf.cast(items, tf.int32), _minutes(times), batch["items"].row_splits


def _batches(folder: Path, name: str, spec: Mapping[str, object]) -> Iterator[dict]:
    files = [str(path) for path in records.shards(folder / name)]
    serialised = tf.data.TFRecordDataset(files).batch(_READ_BATCH)
    return iter(serialised.map(lambda batch: tf.io.parse_example(batch, spec)).prefetch(2))


def _all_examples(sequences: Sequences) -> Iterator[bytes]:
    ends, first, read = np.cumsum(sequences.lengths), 0, 0
    for items, times in sequences.parts():
        read += items.size
        some = slice(first, int(np.searchsorted(ends, read, "right")))
        yield from user_examples(sequences.user_ids[some], sequences.lengths[some], items, times)
        first = some.stop


def user_examples(
    ids: pl.Series, lengths: np.ndarray, items: np.ndarray, times: np.ndarray
) -> Iterator[bytes]:
    """An example for each of some users.

    Args:
      ids: the owner's ids.
      lengths: int [users].
      items: int32, items of one user after the other.
      times: int64, seconds since 1970.
    """
    start = 0
    for user, length in zip(ids, lengths.tolist(), strict=True):
        end = start + length
        yield records.example(
            user_id=_text(user),
            items=records.integers(items[start:end].tolist()),
            times=records.integers(times[start:end].tolist()),
        )
        start = end


def _item_examples(items: pl.DataFrame) -> Iterator[bytes]:
    for item, title, text, image in items.select("item", "title", "text", "image").iter_rows():
        yield records.example(
            item_id=_text(item), title=_text(title), text=_text(text), image=_text(image)
        )


def _text(value: str) -> tf.train.Feature:
    return records.bytes_feature(value.encode())
