"""Batches by tf.data: fixed-length, left-padded windows over the users' sequences.

A training batch is a pure function of (seed, epoch, step): its users come from a keyed
permutation by index, so that nothing is shuffled in a buffer and a run resumes at any step by
starting there; the order of reordered windows is keyed by (seed, step). Leave-one-out (SPEC "The
task"), with s the sequence of a user:

    training     inputs s[-L-3:-3], labels s[-L-2:-2]
    validation   predicts s[-2] from what is before it
    test         predicts s[-1] from what is before it
"""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from data_pipeline.prepare import PreparedData
from data_pipeline.tensorflow_cpu import tf

Batch = dict[str, np.ndarray]
EvalSplit = Literal["validation", "test"]
# Items at the end of a sequence that a split must not see as input.
HELD_OUT = {"train": 2, "validation": 2, "test": 1}


class TrainBatches:
    """The endless stream of training batches.

    Users whose training sequence has fewer than two items have nothing to predict and are left
    out.

    Args:
      data: the data set.
      batch_size: users per batch; an epoch's last batch is filled up with empty rows.
      max_length: L.
      seed: together with the epoch it determines the permutation of the users.
      reorder_rate: probability that the items of a window, the last target included, are put in
        a random order ("item reorder" of CL4SRec, arXiv 2010.14395, over the whole window).
      num_rows: rows of a batch if there are to be more than `batch_size`; the rest is empty.
      rows: which of these rows are read; all of them by default. Processes that train together
        read their own.
    """

    def __init__(
        self,
        data: PreparedData,
        *,
        batch_size: int,
        max_length: int,
        seed: int,
        reorder_rate: float = 0.0,
        num_rows: int | None = None,
        rows: slice | None = None,
    ):
        starts, ends = data.offsets[:-1], data.offsets[1:] - HELD_OUT["train"]
        trainable = tf.where(ends - starts >= 2)[:, 0]
        self._starts = tf.gather(starts, trainable)
        self._ends = tf.gather(ends, trainable)
        self._items = data.items
        self._batch_size = batch_size
        self._max_length = max_length
        self._seed = seed
        self._reorder_rate = reorder_rate
        self._num_rows = num_rows or batch_size
        self._rows = range(self._num_rows)[rows or slice(None)]
        self.num_users = int(trainable.shape[0])
        self.steps_per_epoch = -(-self.num_users // batch_size)

    def iterate(self, start_step: int) -> Iterator[Batch]:
        """Batches of the global steps start_step, start_step + 1, ...

        Each is {"item_sequence": int32 [rows, L], "labels": int32 [rows, L], "row_mask":
        bool [rows]}.
        """
        dataset = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
        dataset = dataset.map(self._batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()

    def _batch(self, step: tf.Tensor) -> dict[str, tf.Tensor]:
        epoch, step_of_epoch = step // self.steps_per_epoch, step % self.steps_per_epoch
        row = tf.range(self._rows.start, self._rows.stop, dtype=tf.int64)
        position = step_of_epoch * self._batch_size + row
        row_mask = (row < self._batch_size) & (position < self.num_users)
        last = tf.constant(self.num_users - 1, tf.int64)
        user = tf.random.experimental.index_shuffle(
            tf.minimum(position, last), seed=tf.stack([self._seed, epoch]), max_index=last
        )
        starts, ends = tf.gather(self._starts, user), tf.gather(self._ends, user)
        ends = tf.where(row_mask, ends, starts)  # an empty window
        windows = _windows(self._items, starts, ends, self._max_length + 1)
        if self._reorder_rate:
            windows = _reorder(windows, self._reorder_rate, self._draws(step))
        return {
            "item_sequence": windows[:, :-1],
            "labels": windows[:, 1:],
            "row_mask": row_mask,
        }

    def _draws(self, step: tf.Tensor) -> tf.Tensor:
        """L + 2 uniform numbers for each row, whichever rows are read and however many follow."""
        shape = [self._batch_size, self._max_length + 2]
        draws = tf.random.stateless_uniform(shape, tf.stack([self._seed, step]))
        draws = tf.pad(draws, [[0, self._num_rows - self._batch_size], [0, 0]])
        return draws[self._rows.start : self._rows.stop]


class EvalBatches:
    """All users once, in order, for ranking the item that was held out.

    Args:
      data: the data set.
      split: "validation" or "test".
      batch_size: users per batch; the last one is filled up with rows whose row_mask is False.
      max_length: L.
      rows: which rows of a batch are read, as in `TrainBatches`.
      full_history: exclude the whole seen history from the ranking; if False only the items of
        the window (the reference's habit).
      exclude_padding_class: exclude class 0; if False only where the window has padding.
    """

    def __init__(
        self,
        data: PreparedData,
        split: EvalSplit,
        *,
        batch_size: int,
        max_length: int,
        full_history: bool,
        exclude_padding_class: bool,
        rows: slice | None = None,
    ):
        self._items = data.items
        self._starts, self._ends = data.offsets[:-1], data.offsets[1:] - HELD_OUT[split]
        self._batch_size = batch_size
        self._max_length = max_length
        self._rows = range(batch_size)[rows or slice(None)]
        self.num_users = data.num_users
        self.num_batches = -(-self.num_users // batch_size)
        starts, ends = self._starts.numpy(), self._ends.numpy()
        self._excluded, self._excluded_offsets = excluded_classes(
            data.items.numpy(),
            starts if full_history else np.maximum(starts, ends - max_length),
            ends,
            with_padding=exclude_padding_class | (ends - starts < max_length),
        )
        self.width = int(np.diff(self._excluded_offsets).max())

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches.

        Each is {"item_sequence": int32 [rows, L], "answers": int32 [rows],
        "excluded": int32 [rows, width] (filled up with -1), "row_mask": bool [rows]}.
        """
        dataset = tf.data.Dataset.range(self.num_batches).map(
            self._batch_function(), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        return dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()

    def _batch_function(self) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
        excluded = tf.convert_to_tensor(self._excluded)
        offsets = tf.convert_to_tensor(self._excluded_offsets)

        def batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
            row = tf.range(self._rows.start, self._rows.stop, dtype=tf.int64)
            position = step * self._batch_size + row
            user = tf.minimum(position, self.num_users - 1)
            starts, ends = tf.gather(self._starts, user), tf.gather(self._ends, user)
            first, last = tf.gather(offsets, user), tf.gather(offsets, user + 1)
            return {
                "item_sequence": _windows(self._items, starts, ends, self._max_length),
                "answers": tf.gather(self._items, ends),
                "excluded": _windows(excluded, first, last, self.width, fill=-1),
                "row_mask": position < self.num_users,
            }

        return batch


def excluded_classes(
    items: np.ndarray, starts: np.ndarray, ends: np.ndarray, with_padding: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The classes that do not compete in each user's ranking.

    Args:
      items: int32 [num_interactions].
      starts: int64 [num_users].
      ends: int64 [num_users]; user u has seen items[starts[u]:ends[u]] and is to be given
        items[ends[u]], the answer.
      with_padding: bool [num_users], whether class 0 is excluded.

    Returns:
      Distinct classes without the answer (which always competes), of all users one after the
      other (int32), and their offsets (int64 [num_users + 1]).
    """
    num_users, num_classes = len(starts), int(items.max()) + 1
    lengths = ends - starts
    user = np.repeat(np.arange(num_users), lengths)
    index = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    seen = user * num_classes + items[starts[user] + index]
    padding = np.flatnonzero(with_padding) * num_classes
    answers = np.arange(num_users) * num_classes + items[ends]
    pairs = np.setdiff1d(np.concatenate([seen, padding]), answers)
    offsets = np.searchsorted(pairs, np.arange(num_users + 1) * num_classes)
    return (pairs % num_classes).astype(np.int32), offsets.astype(np.int64)


def _windows(
    values: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor, length: int, fill: int = 0
) -> tf.Tensor:
    """The last `length` of values[starts:ends] of each row, filled up on the left."""
    index = ends[:, None] + tf.range(-length, 0, dtype=tf.int64)
    inside = index >= starts[:, None]
    return tf.where(inside, tf.gather(values, tf.where(inside, index, 0)), fill)


def _reorder(windows: tf.Tensor, rate: float, draws: tf.Tensor) -> tf.Tensor:
    """Puts the items of a share of the rows in a random order; padding stays on the left.

    A row's first draw decides whether it is reordered, the others order its columns.
    """
    places = tf.linspace(0.0, 1.0, windows.shape[1])
    keys = tf.where(draws[:, :1] < rate, draws[:, 1:], places)
    keys = tf.where(windows > 0, keys, -1.0)
    return tf.gather(windows, tf.argsort(keys, stable=True), batch_dims=1)
