"""The prepared data set on disk: TFRecord shards that TensorFlow Datasets reads.

Two data sets in one folder, since users and items have different features:

    users   {user_id, items}               split "rows", user u is example u
    items   {item_id, title, text, image}  split "rows", item i is example i - 1

`tfds.builder_from_directory(folder / "users")` reads them anywhere. They are written as examples of
its features without its writer, which takes 100 times as long for each user, and read back many
examples at a time.
"""

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
from rich.progress import track

from data_pipeline.sequences import Sequences
from data_pipeline.tensorflow_cpu import tf

import tensorflow_datasets as tfds  # isort: skip  (after TensorFlow is set up)

VERSION = "1.0.0"
SPLIT = "rows"
# Beside a data set: int32, bytes of each example, which tell where each one begins.
_SIZES = "sizes.npy"
# Beside "users": int64, items of each sequence.
_LENGTHS = "lengths.npy"
# A TFRecord is a length (8 bytes), its checksum (4), the example, and its checksum (4).
_BEFORE, _AROUND = 12, 16
_USERS = {
    "user_id": tfds.features.Text(),
    "items": tfds.features.Sequence(tfds.features.Scalar(np.int32)),
}
_SEQUENCE_SPEC = {"items": tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)}
_ITEMS = {name: tfds.features.Text() for name in ("item_id", "title", "text", "image")}
_READ_BATCH = 4096
_EXAMPLES_PER_SHARD = 200_000
# With more users than this, writing takes long enough for a progress bar.
_LONG = 50_000
tfds.disable_progress_bar()


def write(sequences: Sequences, items: pl.DataFrame, folder: Path) -> None:
    """Writes both data sets below `folder`.

    Args:
      sequences: the users' sequences.
      items: columns `item`, `title`, `text`, `image`, row i is item i + 1.
      folder: an existing folder.
    """
    num_users = len(sequences.lengths)
    users = track(
        _user_examples(sequences), "Writing sequences", num_users, disable=num_users < _LONG
    )
    _write_shards(users, num_users, folder, "users", _USERS)
    np.save(folder / "users" / _LENGTHS, sequences.lengths)
    _write_shards(_item_examples(items), items.height, folder, "items", _ITEMS)


def read_sequences(folder: Path) -> tuple[tf.Tensor, tf.Tensor]:
    """Items int32 [num_interactions] and offsets int64 [num_users + 1]."""
    items, lengths = [], []
    for batch in _batches(folder, "users", _SEQUENCE_SPEC):
        items.append(tf.cast(batch["items"].flat_values, tf.int32))
        lengths.append(batch["items"].row_lengths())
    offsets = tf.concat([[0], tf.cumsum(tf.concat(lengths, axis=0))], axis=0)
    return tf.concat(items, axis=0), offsets


def read_texts(folder: Path, name: str, column: str) -> list[str]:
    """One column of texts: `user_id` of "users", any of "items"."""
    spec = {column: tf.io.FixedLenFeature([], tf.string)}
    batches = _batches(folder, name, spec)
    return [value.decode() for batch in batches for value in batch[column].numpy()]


class SequenceReader:
    """Reads single sequences from the shards, whichever are asked for.

    Attributes:
      lengths: int64 [num_users].

    Args:
      folder: holds the data set "users".
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.lengths = np.load(folder / "users" / _LENGTHS)
        sizes = np.load(folder / "users" / _SIZES).astype(np.int64)
        self._sizes = sizes
        starts = np.arange(0, sizes.size, _EXAMPLES_PER_SHARD)
        ends = np.cumsum(sizes + _AROUND)
        before = np.concatenate([[0], ends])[starts]  # bytes of all shards before
        self._positions = ends - sizes - _AROUND - np.repeat(before, np.diff([*starts, sizes.size]))
        self._files = [path.open("rb") for path in _shards(folder, "users")]

    def __call__(self, users: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Items (int32) of users int64 [rows], side by side, and offsets int64 [rows + 1]."""
        examples = tf.numpy_function(self._read, [users], tf.string)
        batch = tf.io.parse_example(tf.ensure_shape(examples, users.shape), _SEQUENCE_SPEC)
        return tf.cast(batch["items"].flat_values, tf.int32), batch["items"].row_splits

    def _read(self, users: np.ndarray) -> np.ndarray:
        examples = np.empty(users.size, object)
        for row, user in enumerate(users.tolist()):
            file = self._files[user // _EXAMPLES_PER_SHARD]
            size = int(self._sizes[user])
            examples[row] = os.pread(file.fileno(), size, int(self._positions[user]) + _BEFORE)
            if len(examples[row]) != size:
                raise OSError(
                    f"{self._folder} is damaged: the sequence of user {user} can't be read. Delete "
                    "the folder; it is made again."
                )
        return examples


def _shards(folder: Path, name: str) -> list[Path]:
    """The TFRecord files of a data set, in order."""
    return sorted((folder / name / VERSION).glob("*.tfrecord-*"))


def _batches(folder: Path, name: str, spec: Mapping[str, object]) -> Iterator[dict]:
    files = [str(path) for path in _shards(folder, name)]
    records = tf.data.TFRecordDataset(files).batch(_READ_BATCH)
    return iter(records.map(lambda batch: tf.io.parse_example(batch, spec)).prefetch(2))


def _write_shards(
    examples: Iterable[bytes], number: int, folder: Path, name: str, features: Mapping
) -> None:
    target = folder / name / VERSION
    target.mkdir(parents=True)
    sizes = np.empty(number, np.int32)
    num_shards = -(-number // _EXAMPLES_PER_SHARD)
    numbered, lengths = enumerate(examples), []
    template = tfds.core.ShardedFileTemplate(
        data_dir=target, dataset_name=name, split=SPLIT, filetype_suffix="tfrecord"
    )
    for shard in range(num_shards):
        start = shard * _EXAMPLES_PER_SHARD
        lengths.append(min(_EXAMPLES_PER_SHARD, number - start))
        path = template.sharded_filepath(shard_index=shard, num_shards=num_shards)
        with tf.io.TFRecordWriter(str(path)) as writer:
            for _ in range(lengths[-1]):
                index, example = next(numbered)
                sizes[index] = len(example)
                writer.write(example)
    np.save(folder / name / _SIZES, sizes)
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=lengths,
        num_bytes=int(sizes.sum(dtype=np.int64)),
        filename_template=template,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        tfds.folder_dataset.write_metadata(
            data_dir=target,
            features=tfds.features.FeaturesDict(features),
            split_infos=[split],
            version=VERSION,
            filename_template=template,
            check_data=False,
            description="Implicit feedback as time-ordered sequences, with texts of the items.",
        )


def _user_examples(sequences: Sequences) -> Iterator[bytes]:
    user = 0
    for items in sequences.parts():
        start = 0
        while start < items.size:
            end = start + int(sequences.lengths[user])
            yield _example(
                user_id=_text(sequences.user_ids[user]),
                items=tf.train.Feature(
                    int64_list=tf.train.Int64List(value=items[start:end].tolist())
                ),
            )
            user, start = user + 1, end


def _item_examples(items: pl.DataFrame) -> Iterator[bytes]:
    for item, title, text, image in items.select("item", "title", "text", "image").iter_rows():
        yield _example(
            item_id=_text(item), title=_text(title), text=_text(text), image=_text(image)
        )


def _example(**features: tf.train.Feature) -> bytes:
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _text(value: str) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))
