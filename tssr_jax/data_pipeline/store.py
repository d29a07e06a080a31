"""The users' sequences, in memory or on disk, and windows over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tssr_jax.data_pipeline import builder
from tssr_jax.data_pipeline.prepare import PreparedData
from tssr_jax.data_pipeline.tensorflow_cpu import tf

_GIB = 2**30


class Rows(NamedTuple):
    """Sequences of some users.

    Attributes:
      items: int32, the items of all these sequences, maybe with others between them.
      minutes: int32, their times, in minutes since 1970.
      starts: int64 [rows], the index of each sequence's first item.
    """

    items: tf.Tensor
    minutes: tf.Tensor
    starts: tf.Tensor

    def windows(self, ends: tf.Tensor, length: int) -> tf.Tensor:
        """The last `length` of the first `ends` items of each row, filled up on the left with 0.

        Args:
          ends: int64 [rows].
          length: length of a window.

        Returns:
          int32 [rows, length].
        """
        return self._last(self.items, ends, length)

    def times(self, ends: tf.Tensor, length: int) -> tf.Tensor:
        """The times of the items of `windows`, int32 [rows, length], minutes since 1970."""
        return self._last(self.minutes, ends, length)

    def _last(self, values: tf.Tensor, ends: tf.Tensor, length: int) -> tf.Tensor:
        place = ends[:, None] + tf.range(-length, 0, dtype=tf.int64)
        inside = place >= 0
        index = tf.where(inside, self.starts[:, None] + place, 0)
        return tf.where(inside, tf.gather(values, index), 0)


class SequenceStore:
    """All sequences of a data set.

    Attributes:
      lengths: int64 [num_users], on the host.

    Args:
      lengths: int64 [num_users], lengths of the sequences.
      rows: maps users int64 [rows] to their sequences.
    """

    def __init__(self, lengths: np.ndarray, rows: Callable[[tf.Tensor], Rows]):
        self.lengths = lengths
        self.rows = rows

    @classmethod
    def in_memory(cls, items: tf.Tensor, minutes: tf.Tensor, offsets: tf.Tensor) -> SequenceStore:
        """User u owns items[offsets[u]:offsets[u + 1]], at these minutes since 1970."""

        def rows(users: tf.Tensor) -> Rows:
            return Rows(items, minutes, tf.gather(offsets, users))

        return cls(np.diff(offsets.numpy()), rows)

    @classmethod
    def on_disk(cls, folder: Path) -> SequenceStore:
        """Reads sequences from the shards on demand; memory holds a few bytes for each user."""
        reader = builder.SequenceReader(folder)

        def rows(users: tf.Tensor) -> Rows:
            items, minutes, offsets = reader(users)
            # One extra item, so that indices are valid when all rows are empty.
            items, minutes = (tf.concat([x, [0]], axis=0) for x in (items, minutes))
            return Rows(items, minutes, offsets[:-1])

        return cls(reader.lengths, rows)


def open_store(data: PreparedData, in_memory_gib: float) -> SequenceStore:
    """The sequences of a data set; in memory if they take up to `in_memory_gib` GiB."""
    size = data.report["interactions_kept"] * 2 * np.dtype(np.int32).itemsize
    if size <= in_memory_gib * _GIB:
        return SequenceStore.in_memory(*builder.read_sequences(data.folder))
    return SequenceStore.on_disk(data.folder)
