"""TFRecord shards that TensorFlow Datasets reads, with fast writes and random access.

Examples have a builder's features but are written without its writer, which takes 18 times as
long for a short sequence. The sizes of all examples are stored as well, so that a single example
can be read from the middle of a shard.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import itertools
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from tssr_jax.data_pipeline.tensorflow_cpu import tf, tfds

VERSION = "2.0.0"
SPLIT = "rows"
# Files in a data set's folder, int64: bytes of each example, and examples of each shard.
_SIZES, _SHARDS = "sizes.npy", "shards.npy"
# A TFRecord is a length (8 bytes), its checksum (4), the example, and its checksum (4).
_BEFORE, _AROUND = 12, 16


def write(
    examples: Iterable[bytes],
    folder: Path,
    features: Mapping[str, object],
    *,
    per_shard: int,
    description: str,
) -> None:
    """Writes a data set; `tfds.builder_from_directory` reads it.

    Args:
      examples: serialised tf.train.Example, at least one.
      folder: of this data set; its name is the last part.
      features: TFDS features by name.
      per_shard: examples in a file.
      description: for the builder.
    """
    runs = enumerate(_runs(examples, per_shard))
    sizes = [write_shard(folder, number, some) for number, some in runs]
    finish(folder, features, sizes, description=description)


def write_shard(folder: Path, number: int, examples: Iterable[bytes]) -> np.ndarray:
    """Writes a file of a data set, before the number of files is known.

    Args:
      folder: of the data set.
      number: of the file, from 0.
      examples: serialised tf.train.Example.

    Returns:
      int64, the size of each example; for `finish`.
    """
    sizes, path = array("q"), _unfinished(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for one in examples:
            sizes.append(len(one))
            writer.write(one)
    return np.array(sizes, np.int64)


def read_shard(folder: Path, number: int) -> np.ndarray:
    """The bytes of a file that `write_shard` wrote, as uint8."""
    return np.fromfile(_unfinished(folder, number), np.uint8)


def save_shard(folder: Path, number: int, content: np.ndarray) -> None:
    """Writes a file of a data set from what `read_shard` returned on another machine."""
    path = _unfinished(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    content.tofile(path)


def _unfinished(folder: Path, number: int) -> Path:
    return folder / VERSION / f"shard-{number}"


def finish(
    folder: Path, features: Mapping[str, object], sizes: Sequence[np.ndarray], *, description: str
) -> None:
    """Names the files that `write_shard` wrote, and describes them.

    Args:
      folder: of the data set.
      features: TFDS features by name.
      sizes: of each file's examples.
      description: for the builder.
    """
    target, lengths = folder / VERSION, [own.size for own in sizes]
    template = tfds.core.ShardedFileTemplate(
        data_dir=target, dataset_name=folder.name, split=SPLIT, filetype_suffix="tfrecord"
    )
    for index in range(len(sizes)):  # their names tell how many there are
        name = template.sharded_filepath(shard_index=index, num_shards=len(sizes))
        _unfinished(folder, index).rename(name)
    np.save(folder / _SIZES, np.concatenate(sizes))
    np.save(folder / _SHARDS, np.array(lengths, np.int64))
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=lengths,
        num_bytes=sum(int(own.sum()) for own in sizes),
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
            description=description,
        )


def _runs(values: Iterable[bytes], size: int) -> Iterator[Iterator[bytes]]:
    """Runs of `size` values, the last one shorter; exhaust each run before the next."""
    remaining = iter(values)
    for first in remaining:
        yield itertools.chain([first], itertools.islice(remaining, size - 1))


def shards(folder: Path) -> list[Path]:
    """The TFRecord files of a data set, in order; raises FileNotFoundError if there is none."""
    found = sorted((folder / VERSION).glob("*.tfrecord-*"))
    if not found:
        raise FileNotFoundError(errno.ENOENT, "there are no records", str(folder))
    return found


class RecordReader:
    """Reads single examples, in any order.

    Attributes:
      number: examples in all.

    Args:
      folder: of the data set.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._sizes = np.load(folder / _SIZES)
        self.number = self._sizes.size
        lengths = np.load(folder / _SHARDS)
        self._shard_of = np.repeat(np.arange(lengths.size), lengths)
        ends = np.cumsum(self._sizes + _AROUND)
        starts = ends - self._sizes - _AROUND
        firsts = np.cumsum(lengths) - lengths
        self._positions = starts - np.repeat(starts[firsts], lengths)
        self._files = [path.open("rb") for path in shards(folder)]

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Serialised examples of int [number], an object array.

        Raises:
          OSError: if one can't be read.
        """
        examples = np.empty(indices.size, object)
        for place, index in enumerate(indices.tolist()):
            size = int(self._sizes[index])
            file = self._files[self._shard_of[index]]
            examples[place] = os.pread(file.fileno(), size, int(self._positions[index]) + _BEFORE)
            if len(examples[place]) != size:
                raise OSError(
                    f"{self._folder} is damaged: record {index} can't be read. Delete the folder; "
                    "it is made again."
                )
        return examples


def texts(folder: Path, feature: str) -> list[str]:
    """One feature of each example of a data set, a string.

    Raises:
      OSError: if an example can't be read, or does not have the feature.
    """
    parse, read = _example_message(), RecordReader(folder)
    found = []
    for index in range(read.number):
        (serialised,) = read(np.array([index]))
        try:
            features = parse.FromString(serialised).features.feature
            (text,) = features[feature].bytes_list.value
            found.append(text.decode())
        except (DecodeError, ValueError) as error:  # ValueError: not one text, or not UTF-8
            raise OSError(
                f"{folder} is damaged: record {index} has no {feature} that can be read. Delete "
                "the folder; it is made again."
            ) from error
    return found


@functools.cache
def _example_message() -> Any:
    """TensorFlow's message Example, as far as it holds bytes; TensorFlow need not be imported."""
    file = descriptor_pb2.FileDescriptorProto(name="example_of_bytes.proto", package="tssr_jax")

    def message(name: str, field: str, repeated: bool, of: str = "") -> Any:
        own = file.message_type.add(name=name)
        label = 3 if repeated else 1  # LABEL_REPEATED, LABEL_OPTIONAL
        kind = (
            {"type": 11, "type_name": f".tssr_jax.{of}"} if of else {"type": 12}
        )  # message, bytes
        own.field.add(name=field, number=1, label=label, **kind)
        return own

    message("BytesList", "value", repeated=True)
    message("Feature", "bytes_list", repeated=False, of="BytesList")
    features = message("Features", "feature", repeated=True, of="Features.FeatureEntry")
    entry = features.nested_type.add(name="FeatureEntry", options={"map_entry": True})
    entry.field.add(name="key", number=1, label=1, type=9)  # TYPE_STRING
    entry.field.add(name="value", number=2, label=1, type=11, type_name=".tssr_jax.Feature")
    message("Example", "features", repeated=False, of="Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tssr_jax.Example"))


def example(**features: tf.train.Feature) -> bytes:
    """A serialised tf.train.Example; equal features give equal bytes, in any process."""
    message = tf.train.Example(features=tf.train.Features(feature=features))
    return message.SerializeToString(deterministic=True)


def bytes_feature(value: bytes) -> tf.train.Feature:
    """A feature of one byte string."""
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def floats(values: Iterable[float]) -> tf.train.Feature:
    """A feature of numbers, as float32."""
    return tf.train.Feature(float_list=tf.train.FloatList(value=list(values)))


def integers(values: Iterable[int]) -> tf.train.Feature:
    """A feature of integers."""
    return tf.train.Feature(int64_list=tf.train.Int64List(value=list(values)))
