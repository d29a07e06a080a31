"""Batches of histories to rank for, by tf.data, with the answer that was held out of each."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from tssr_jax.data_pipeline.splits import EvalSplit
from tssr_jax.data_pipeline.store import SequenceStore
from tssr_jax.data_pipeline.streams import Batch, stream, without_conversion
from tssr_jax.data_pipeline.tensorflow_cpu import tf

# From this many batches on, it pays to compile programs for shorter windows.
_SORTED_FROM = 16
# Histories of up to this many windows are excluded in narrow arrays: a few users with thousands of
# items would make the arrays of all batches wide.
_NARROW = 8


class EvalBatches:
    """All answers of a split once, each with the history before it.

    They come in the order of the lengths of their histories, if there are several batches. A batch
    of short histories has narrow windows: a half or a quarter of `max_length`.

    Attributes:
      targets: whose answers they are, in their own order.
      order: int64 [rows], the order in which they come.

    Args:
      store: the sequences.
      split: "validation" or "test".
      batch_size: answers per batch; the last one is filled up with rows whose row_mask is False.
      max_length: L.
      full_history: exclude the whole seen history from the ranking; if False only the items of
        the window (the reference's habit).
      exclude_padding_class: exclude class 0; if False only where the window has padding.
      keep_seen: exclude no item, and miss no answer.
      rows: which rows of a batch are read, as in `Cut`.
    """

    def __init__(
        self,
        store: SequenceStore,
        split: EvalSplit,
        *,
        batch_size: int,
        max_length: int,
        full_history: bool,
        exclude_padding_class: bool,
        keep_seen: bool = False,
        rows: slice = slice(None),
    ):
        self._store = store
        self.targets = targets = store.splits.targets[split]
        self._users, self._ends = tf.constant(targets.users), tf.constant(targets.ends)
        self._batch_size = batch_size
        self._max_length = max_length
        self._exclude_padding_class = exclude_padding_class
        # Of all splits, so that their batches have one shape.
        longest = max(int(own.ends.max()) for own in store.splits.targets.values())
        self._seen = longest if full_history else min(longest, max_length)
        self._keep_seen = keep_seen
        self._rows = range(batch_size)[rows]
        self.number = targets.users.size
        self.num_batches = -(-self.number // batch_size)
        self.order = np.arange(self.number)
        if self.num_batches >= _SORTED_FROM:
            self.order = np.argsort(targets.ends, kind="stable")
        self._order = tf.constant(self.order)

    def answers(self) -> np.ndarray:
        """The items, int32 [rows], in their own order."""
        return self._answers

    @functools.cached_property
    def _answers(self) -> np.ndarray:
        found = np.zeros(self.number, np.int32)
        for some, rows in self._store.chunks(self.targets.users):
            ends = tf.constant(self.targets.ends[some] + 1)
            found[some] = rows.windows(ends, 1)[:, 0].numpy()
        return found

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches.

        Each is {"item_sequence" and "times": int32 [rows, L or less], "answers": int32 [rows],
        "excluded": int32 [rows, width] (-1 where there is nothing), "missed": bool [rows], answers
        that can't be recommended, since the user has seen them; "row_mask": bool [rows]}; "events"
        and "profiles" as "times", where the data has them. Times are minutes since 1970, and 0 on
        padding.
        """
        for step, batch in enumerate(stream(self._dataset)):
            width = self._width(step)
            names = ("item_sequence", "times", *self._store.side)
            narrow = {name: batch[name][:, -width:] for name in names}
            yield batch | narrow

    def _width(self, step: int) -> int:
        """How many positions a batch's histories need; one of three numbers."""
        if self.num_batches < _SORTED_FROM:
            return self._max_length
        longest = self.order[min((step + 1) * self._batch_size, self.number) - 1]
        needed = int(self._ends[longest])
        widths = (-(-self._max_length // 4), -(-self._max_length // 2))
        return next((width for width in widths if width >= needed), self._max_length)

    def _seen_width(self, step: tf.Tensor) -> tf.Tensor | int:
        """How many items a batch's histories have at most; one of two numbers."""
        narrow = _NARROW * self._max_length
        if self.num_batches < _SORTED_FROM or narrow >= self._seen:
            return self._seen
        last = tf.minimum((step + 1) * self._batch_size, self.number) - 1
        needed = tf.gather(self._ends, tf.gather(self._order, last))
        return tf.where(needed <= narrow, tf.constant(narrow, tf.int64), self._seen)

    @functools.cached_property
    def _dataset(self) -> tf.data.Dataset:
        """Traced once, however often it is iterated over."""
        return tf.data.Dataset.range(self.num_batches).map(
            without_conversion(self._batch),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )

    def _batch(self, step: tf.Tensor) -> dict[str, tf.Tensor]:
        row = tf.range(self._rows.start, self._rows.stop, dtype=tf.int64)
        position = step * self._batch_size + row
        place = tf.gather(self._order, tf.minimum(position, self.number - 1))
        ends = tf.gather(self._ends, place)
        rows = self._store.rows(tf.gather(self._users, place))
        answers = rows.windows(ends + 1, 1)[:, 0]
        seen = rows.windows(ends, self._seen_width(step))
        missed = tf.reduce_any(seen == answers[:, None], axis=1)
        if self._keep_seen:
            seen, missed = seen[:, :0], tf.zeros_like(missed)
        with_padding = self._exclude_padding_class | (ends < self._max_length)
        side = self._store.side.items()
        return {
            **{name: rows.last(column, ends, self._max_length) for name, column in side},
            "item_sequence": rows.windows(ends, self._max_length),
            "times": rows.times(ends, self._max_length),
            "answers": answers,
            "excluded": excluded_classes(seen, answers, with_padding),
            "missed": missed,
            "row_mask": position < self.number,
        }


def excluded_classes(seen: tf.Tensor, answers: tf.Tensor, with_padding: tf.Tensor) -> tf.Tensor:
    """The classes that do not compete in each row's ranking.

    Args:
      seen: int32 [rows, width], items that the user has seen; 0 where there is none.
      answers: int32 [rows], which always compete.
      with_padding: bool [rows], whether class 0 is excluded.

    Returns:
      int32 [rows, width + 1]; each class once, -1 where there is nothing.
    """
    ordered = tf.sort(seen, axis=1)
    first = tf.concat([tf.ones_like(ordered[:, :1], tf.bool), ordered[:, 1:] > ordered[:, :-1]], 1)
    counts = first & (ordered > 0) & (ordered != answers[:, None])
    padding = tf.where(with_padding, 0, -1)[:, None]
    return tf.concat([tf.where(counts, ordered, -1), padding], axis=1)
