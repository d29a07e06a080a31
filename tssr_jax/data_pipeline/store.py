"""The users' sequences, in memory or on disk, and windows over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np

from tssr_jax.data_pipeline import builder
from tssr_jax.data_pipeline.prepare import PreparedData
from tssr_jax.data_pipeline.splits import EvalSplit, global_time, leave_one_out
from tssr_jax.data_pipeline.tensorflow_cpu import tf

_GIB = 2**30
_ITEMS_AT_A_TIME = 2**18


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
      splits: which items train, and which are answers; leave-one-out if nothing else is set.

    Args:
      lengths: int64 [num_users], lengths of the sequences.
      rows: maps users int64 [rows] to their sequences.
    """

    def __init__(self, lengths: np.ndarray, rows: Callable[[tf.Tensor], Rows]):
        self.lengths = lengths
        self.rows = rows
        self.splits = leave_one_out(lengths)

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

    def answer(self, split: EvalSplit, number: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """An answer of a split, after up to `length` items before it, and their times.

        Args:
          split: "validation" or "test".
          number: of the answer, from 0.
          length: most items before the answer.

        Returns:
          int32, the items, the answer last; and int32, minutes since 1970.
        """
        own = slice(number, number + 1)
        targets = self.splits.targets[split]
        rows = self.rows(tf.constant(targets.users[own], tf.int64))
        window = tf.constant(targets.ends[own] + 1, tf.int64), length + 1
        items, minutes = rows.windows(*window).numpy()[0], rows.times(*window).numpy()[0]
        return items[items > 0], minutes[items > 0]

    def all_times(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Users int64 [rows], and the times of all their items, [rows, length], left padded."""
        longest = int(self.lengths.max())
        for users in users_in_chunks(np.arange(self.lengths.size), longest):
            own = users.numpy()
            yield own, self.rows(users).times(tf.constant(self.lengths[own]), longest).numpy()


def users_in_chunks(users: np.ndarray, length: int = 1) -> Iterator[tf.Tensor]:
    """Users int64, in chunks that are small enough for windows of this length in memory."""
    number = max(1, _ITEMS_AT_A_TIME // length)
    for start in range(0, users.size, number):
        yield tf.constant(users[start : start + number], tf.int64)


def open_store(data: PreparedData, config: ml_collections.ConfigDict) -> SequenceStore:
    """The sequences of a data set, in memory or on disk, and how they are split.

    Args:
      data: the prepared data set.
      config: of the run; its sections `data` (`in_memory_gib`) and `evaluate` are read.

    Raises:
      UserError: as `splits.global_time` does.
    """
    size = data.report["interactions_kept"] * 2 * np.dtype(np.int32).itemsize
    if size <= config.data.in_memory_gib * _GIB:
        store = SequenceStore.in_memory(*builder.read_sequences(data.folder))
    else:
        store = SequenceStore.on_disk(data.folder)
    if config.evaluate.split == "global_time":
        store.splits = global_time(store.lengths, store.all_times, config.evaluate)
    return store
