"""The users' sequences, in memory or on disk, and windows over them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import ml_collections
import numpy as np

from tssr_jax.data_pipeline import builder
from tssr_jax.data_pipeline.prepare import PreparedData
from tssr_jax.data_pipeline.sequences import MIN_SEQUENCE_LENGTH
from tssr_jax.data_pipeline.splits import (
    MINUTES_PER_DAY,
    EvalSplit,
    Splits,
    Targets,
    asked_users,
    global_time,
    leave_one_out,
    newest,
    with_more_trained,
)
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.errors import UserError

_GIB = 2**30
_ITEMS_AT_A_TIME = 2**18


# Names of the columns of `Rows`.
ITEMS, MINUTES, EVENT, WEIGHT, PROFILE = "items", "minutes", "event", "weight", "profile"


class Rows(NamedTuple):
    """Sequences of some users.

    Attributes:
      columns: of all these sequences, maybe with others between them: `items`, `minutes` since 1970
        and, where the data has them, `event` int32, `weight` float32, and `profile` int32, the code
        of the item's user (see `profiles`).
      starts: int64 [rows], the index of each sequence's first item.
    """

    columns: Mapping[str, tf.Tensor]
    starts: tf.Tensor

    def windows(self, ends: tf.Tensor, length: tf.Tensor | int) -> tf.Tensor:
        """The last `length` of the first `ends` items of each row, filled up on the left with 0.

        Args:
          ends: int64 [rows].
          length: length of a window.

        Returns:
          int32 [rows, length].
        """
        return self.last(ITEMS, ends, length)

    def times(self, ends: tf.Tensor, length: int) -> tf.Tensor:
        """The times of the items of `windows`, int32 [rows, length], minutes since 1970."""
        return self.last(MINUTES, ends, length)

    def last(self, name: str, ends: tf.Tensor, length: tf.Tensor | int) -> tf.Tensor:
        """A column of the items of `windows`, [rows, length], 0 where there is none."""
        values = self.columns[name]
        place = ends[:, None] + tf.range(-length, 0, dtype=tf.int64)
        inside = place >= 0
        index = tf.where(inside, self.starts[:, None] + place, 0)
        return tf.where(inside, tf.gather(values, index), tf.zeros([], values.dtype))


class SequenceStore:
    """All sequences of a data set.

    Attributes:
      lengths: int64 [num_users], on the host.
      predicted: bool [events + 1], which events are predicted, by their numbers (0 is none); None
        if the data has no events: all interactions are.
      weighted: whether interactions have weights.
      side: what models read beside the items, as it is called in batches, and its column.
      lent: what `gate_rows` has chosen, by the settings that choose it.

    Args:
      lengths: int64 [num_users], lengths of the sequences.
      rows: maps users int64 [rows] to their sequences.
      columns: names of what the sequences have.
      predicted: see above.
      profiles: int32 [num_users], see `profiles`; None if the data has none.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        rows: Callable[[tf.Tensor], Rows],
        columns: Collection[str] = (ITEMS, MINUTES),
        predicted: np.ndarray | None = None,
        profiles: np.ndarray | None = None,
    ):
        self.lengths = lengths
        self.rows = rows
        self.weighted = WEIGHT in columns
        self.predicted = predicted
        self.side: dict[str, str] = {} if predicted is None else {"events": EVENT}
        self.side |= {} if profiles is None else {"profiles": PROFILE}
        self.lent: dict[tuple[object, ...], Targets] = {}

    @functools.cached_property
    def splits(self) -> Splits:
        """Which items train, and which are answers: leave-one-out if nothing else is set."""
        return leave_one_out(self.lengths, self.predictions if self.has_events else None)

    @property
    def has_events(self) -> bool:
        """Whether interactions have events."""
        return self.predicted is not None

    @classmethod
    def in_memory(  # noqa: PLR0917
        cls,
        items: tf.Tensor,
        minutes: tf.Tensor,
        offsets: tf.Tensor,
        more: Mapping[str, tf.Tensor] = MappingProxyType({}),
        predicted: np.ndarray | None = None,
        profiles: np.ndarray | None = None,
    ) -> SequenceStore:
        """User u owns items[offsets[u]:offsets[u + 1]], at these minutes since 1970."""
        columns = {ITEMS: items, MINUTES: minutes, **more}
        if profiles is not None:
            columns[PROFILE] = tf.repeat(tf.constant(profiles), offsets[1:] - offsets[:-1])

        def rows(users: tf.Tensor) -> Rows:
            return Rows(columns, tf.gather(offsets, users))

        return cls(np.diff(offsets.numpy()), rows, columns, predicted, profiles)

    @classmethod
    def on_disk(
        cls,
        folder: Path,
        predicted: np.ndarray | None = None,
        profiles: np.ndarray | None = None,
    ) -> SequenceStore:
        """Reads sequences from the shards on demand; memory holds a few bytes for each user."""
        reader = builder.SequenceReader(folder)

        def rows(users: tf.Tensor) -> Rows:
            columns, offsets = reader(users)
            if profiles is not None:
                codes = tf.gather(tf.constant(profiles), users)
                columns[PROFILE] = tf.repeat(codes, offsets[1:] - offsets[:-1])
            # One extra item, so that indices are valid when all rows are empty.
            filled = {
                name: tf.concat([x, tf.zeros([1], x.dtype)], axis=0) for name, x in columns.items()
            }
            return Rows(filled, offsets[:-1])

        columns = (ITEMS, MINUTES, *builder.more_columns(folder))
        return cls(reader.lengths, rows, columns, predicted, profiles)

    def predictions(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Users int64 [rows], and which of all their items are predicted, bool, left padded."""
        assert self.predicted is not None
        for users, events in self._all(EVENT):
            yield users, self.predicted[events]

    @functools.cached_property
    def newest_predicted(self) -> np.ndarray:
        """The place of each user's newest training item that is predicted, int64; -1 for none."""
        trained = self.splits.trained
        if not self.has_events:
            return trained - 1
        places = np.full(self.lengths.size, -1, np.int64)
        for users, there in self.predictions():
            shift = self.lengths[users] - there.shape[1]
            column = np.arange(there.shape[1])
            found = newest(there & (column < (trained[users] - shift)[:, None]))
            places[users] = np.where(found >= 0, found + shift, -1)
        return places

    @functools.cached_property
    def first_of_newest_day(self) -> np.ndarray:
        """The place of the first training item of each user's newest day (UTC), int64 [num_users].

        Only items that are predicted count. A user of a single day has none: -1.
        """
        trained, places = self.splits.trained, np.full(self.lengths.size, -1, np.int64)
        predictions = self.predictions() if self.has_events else itertools.repeat(None)
        for (users, minutes), asked in zip(self.all_times(), predictions, strict=False):
            shift = (self.lengths[users] - minutes.shape[1])[:, None]
            place = np.arange(minutes.shape[1]) + shift
            day = minutes // MINUTES_PER_DAY
            oldest = np.take_along_axis(day, np.maximum(-shift, 0), axis=1)
            there = (place < trained[users][:, None]) & (place >= 0) & (day > oldest)
            if asked is not None:
                there &= asked[1]
            there &= day == np.where(there, day, oldest).max(axis=1, keepdims=True)
            own = there.any(axis=1)
            places[users[own]] = place[own, there[own].argmax(axis=1)]
        return places

    def answer(self, split: EvalSplit, number: int, length: int) -> dict[str, np.ndarray]:
        """An answer of a split, after up to `length` items before it: the columns of `Rows`.

        Args:
          split: "validation" or "test".
          number: of the answer, from 0.
          length: most items before the answer.
        """
        own = slice(number, number + 1)
        targets = self.splits.targets[split]
        rows = self.rows(tf.constant(targets.users[own], tf.int64))
        window = tf.constant(targets.ends[own] + 1, tf.int64), length + 1
        columns = {name: rows.last(name, *window).numpy()[0] for name in rows.columns}
        return {name: values[columns[ITEMS] > 0] for name, values in columns.items()}

    def all_times(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Users int64 [rows], and the times of all their items, [rows, length], left padded."""
        return self._all(MINUTES)

    def _all(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for users, rows in self.chunks(np.arange(self.lengths.size)):
            ends = self.lengths[users]
            yield users, rows.last(name, tf.constant(ends), int(ends.max())).numpy()

    def chunks(self, users: np.ndarray) -> Iterator[tuple[np.ndarray, Rows]]:
        """Sequences of users, some at a time, of similar lengths: windows have little padding.

        A chunk is small enough to be read whole, as a store on disk does.

        Args:
          users: int64 [rows].

        Yields:
          int64 [some], places in `users`, ascending; and the sequences of these users.
        """
        lengths = np.maximum(self.lengths[users], 1)
        exponents = np.ceil(np.log2(lengths)).astype(int)
        for exponent in np.unique(exponents).tolist():
            places = np.flatnonzero(exponents == exponent)
            number = max(1, _ITEMS_AT_A_TIME >> exponent)
            for start in range(0, places.size, number):
                some = places[start : start + number]
                yield some, self.rows(tf.constant(users[some]))


def open_store(data: PreparedData, config: ml_collections.ConfigDict) -> SequenceStore:
    """The sequences of a data set, in memory or on disk, and how they are split.

    Args:
      data: the prepared data set.
      config: of the run; its sections `data` (`in_memory_gib`) and `evaluate` are read.

    Raises:
      UserError: as `splits.global_time` does; or if nobody has enough predicted interactions.
    """
    predicted = None
    if config.data.target_events:
        names = ("", *data.events)
        predicted = np.isin(names, tuple(config.data.target_events))
    number = 2 + len(builder.more_columns(data.folder)) + bool(data.profile_fields)
    size = data.report["interactions_kept"] * number * np.dtype(np.int32).itemsize
    if size <= config.data.in_memory_gib * _GIB:
        columns = builder.read_sequences(data.folder)
        store = SequenceStore.in_memory(*columns, predicted, data.profiles)
    else:
        store = SequenceStore.on_disk(data.folder, predicted, data.profiles)
    asked = store.predictions if store.has_events else None
    if config.evaluate.split == "global_time":
        one_cut = len(config.evaluate.cuts) == 1
        drawn = asked_users(data.user_ids) if one_cut else None
        store.splits = global_time(store.lengths, store.all_times, config.evaluate, asked, drawn)
    elif not store.splits.targets["test"].users.size:
        raise UserError(
            f"No user has {MIN_SEQUENCE_LENGTH} interactions that are predicted "
            f"(--config.data.target_events={tuple(config.data.target_events)}): one to train on, "
            "and one each for validation and test."
        )
    store.splits = with_more_trained(store.splits, store.lengths, config.evaluate.held_out)
    return store
