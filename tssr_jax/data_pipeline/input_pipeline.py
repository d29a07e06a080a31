"""Batches by tf.data: fixed-length, left-padded windows over the users' sequences.

A training batch is a pure function of (seed, epoch, step): a keyed permutation of indices selects
its windows, without a shuffle buffer, so that a run can resume at any step. The order of items in
reordered windows is keyed by (seed, step). Leave-one-out
(docs/reference/method.md, "Evaluation protocol"), with s the sequence of a user:

    training     inputs s[-L-3:-3], labels s[-L-2:-2], or earlier windows (`TrainWindows`)
    validation   predicts s[-2] from what is before it
    test         predicts s[-1] from what is before it
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import ml_collections
import numpy as np

from tssr_jax.data_pipeline.gate_rows import trained_lengths
from tssr_jax.data_pipeline.packing import pack_tensors
from tssr_jax.data_pipeline.store import SequenceStore
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.data_pipeline.windows import HELD_OUT, EvalSplit, TrainWindows, reorder, without_items
from tssr_jax.errors import UserError

Batch = dict[str, Any]
# Fewer batches of users to rank are not worth programs for several widths.
_SORTED_FROM = 16
_ITEMS_AT_A_TIME = 2**18
# Two held-out items, one item to predict, and one to predict it from.
NOTHING_TO_TRAIN_ON = (
    "No user has the 4 interactions that a training window needs (train.held_out_items left out)."
)


class Cut(NamedTuple):
    """How a batch is cut over devices and processes.

    Attributes:
      num_rows: rows of a batch; those beyond the batch size are empty.
      rows: the rows that this process reads. Processes that train together read their own.
      num_devices: devices in all processes; each gets an equal number of rows.
    """

    num_rows: int
    rows: slice = slice(None)
    num_devices: int = 1


class GateInputs(NamedTuple):
    """What the gate of a model with memories learns from.

    Attributes:
      arrays: by name, each [number, ...].
      rows: how many of them a step of the gate reads.
      period: the gate takes a step at each step of the network that is a multiple of this.
    """

    arrays: Mapping[str, np.ndarray]
    rows: int
    period: int


class DistinctReader(Protocol):
    """Reads the inputs of a trainable content encoder for a batch."""

    def part(self, items: tf.Tensor, num_devices: int, mine: slice) -> Any:
        """See `content.distinct.PreparedEncoder.part`."""


class TrainBatches:
    """The endless stream of training batches.

    Users whose training sequence has fewer than two items have nothing to predict and are left
    out.

    Args:
      store: the sequences.
      batch_size: windows per batch; an epoch's last batch is filled up with empty rows.
      max_length: L.
      seed: together with the epoch it determines the permutation of the windows.
      windows: kind of the windows, see `TrainWindows`.
      window_stride: items between the ends of two "strided" windows.
      time_noise: days; if there are any, a window's items, the last target included, are ordered by
        their times plus noise of one of these scales (see `windows.reorder`).
      packing: add the packed form of the windows.
      encoders: trainable content encoders, by modality: add their inputs for the distinct items of
        the global batch. (Each process then reads all rows.)
      held_out: bool [num_classes], items that are left out of all windows.
      trained: int64 [num_users], how many items of each user windows may have; by default all but
        those that are held out for evaluation.
      gate: add the next of its rows.
      cut: the part of a batch that this process reads; by default all.
    """

    def __init__(
        self,
        store: SequenceStore,
        *,
        batch_size: int,
        max_length: int,
        seed: int,
        windows: str = "last",
        window_stride: int = 1,
        time_noise: Sequence[float] = (),
        packing: bool = False,
        encoders: Mapping[str, DistinctReader] | None = None,
        held_out: np.ndarray | None = None,
        trained: np.ndarray | None = None,
        gate: GateInputs | None = None,
        cut: Cut | None = None,
    ):
        self._store = store
        if trained is None:
            trained = store.lengths - HELD_OUT["train"]
        self._windows = TrainWindows(trained, windows, max_length, window_stride)
        self._gate = gate
        self._batch_size = batch_size
        self._max_length = max_length
        self._seed = seed
        self._time_noise = tuple(time_noise)
        self._packing = packing
        self._encoders = encoders or {}
        self._held_out = held_out
        self._cut = cut or Cut(batch_size)
        self._rows = range(self._cut.num_rows)[self._cut.rows]
        self.num_users = self._windows.num_users
        self.num_windows = self._windows.number
        self.steps_per_epoch = -(-self.num_windows // batch_size)

    def iterate(self, start_step: int) -> Iterator[Batch]:
        """Batches of the global steps start_step, start_step + 1, ...

        Each is {"item_sequence", "labels" and "times", minutes since 1970: int32 [rows, L],
        "row_mask": bool [rows]}. With packing also "packed", see `packing.pack`; with encoders also
        "distinct", the inputs of this process's devices by modality, see `DistinctReader.part`;
        with a gate also "gate", its rows.
        """
        dataset = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
        dataset = dataset.map(
            _without_conversion(self._batch),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        return _stream(dataset)

    def _batch(self, step: tf.Tensor) -> dict[str, Any]:
        epoch, step_of_epoch = step // self.steps_per_epoch, step % self.steps_per_epoch
        all_rows = tf.range(self._cut.num_rows, dtype=tf.int64)
        position = step_of_epoch * self._batch_size + all_rows
        row_mask = (all_rows < self._batch_size) & (position < self.num_windows)
        last = tf.constant(self.num_windows - 1, tf.int64)
        index = tf.random.experimental.index_shuffle(
            tf.minimum(position, last), seed=tf.stack([self._seed, epoch]), max_index=last
        )
        users, ends = self._windows(index)
        ends = tf.where(row_mask, ends, 0)  # an empty window
        own = slice(self._rows.start, self._rows.stop)
        whole = bool(self._encoders) or self._held_out is not None
        read = slice(0, self._cut.num_rows) if whole else own
        rows = self._store.rows(users[read])
        window = ends[read], self._max_length + 1
        windows, times = rows.windows(*window), rows.times(*window)
        sizes = tf.minimum(ends, self._max_length + 1)
        if self._held_out is not None:
            windows, times = without_items(windows, self._held_out, times)
            sizes = tf.math.count_nonzero(windows, axis=1)
            row_mask &= sizes > 0
        if self._time_noise:
            draws = self._draws(step)[read]
            windows, times = reorder(windows, times, self._time_noise, draws)
        batch = {"row_mask": row_mask[own]}
        devices = self._cut.num_devices
        if self._encoders:
            first, end = (n * devices // self._cut.num_rows for n in (own.start, own.stop))
            batch["distinct"] = {
                name: prepared.part(windows[:, :-1], devices, slice(first, end))
                for name, prepared in self._encoders.items()
            }
        if whole:
            windows, times = windows[own], times[own]
        inputs = windows[:, :-1]
        batch |= {"item_sequence": inputs, "labels": windows[:, 1:]}
        batch["times"] = times[:, :-1]
        if self._packing:
            first = self._rows.start * devices // self._cut.num_rows
            batch["packed"] = pack_tensors(inputs, tf.maximum(sizes - 1, 0), devices, first)
        if self._gate is not None:
            batch["gate"] = self._gate_rows(step)
        return batch

    def _gate_rows(self, step: tf.Tensor) -> dict[str, tf.Tensor]:
        """This process's share of the rows of the gate's newest step, in turn through all."""
        assert self._gate is not None
        arrays, rows, period = self._gate
        filled = -(-rows // self._cut.num_devices) * self._cut.num_devices
        first, end = (n * filled // self._cut.num_rows for n in (self._rows.start, self._rows.stop))
        row = tf.range(first, end, dtype=tf.int64)
        number = len(next(iter(arrays.values())))
        place = (step // period * rows + tf.minimum(row, rows - 1)) % number
        batch = {name: tf.gather(values, place) for name, values in arrays.items()}
        return batch | {"row_mask": row < rows}

    def _draws(self, step: tf.Tensor) -> tf.Tensor:
        """L + 2 uniform numbers for each row, which do not depend on the number of empty rows."""
        shape = [self._batch_size, self._max_length + 2]
        draws = tf.random.stateless_uniform(shape, tf.stack([self._seed, step]))
        return tf.pad(draws, [[0, self._cut.num_rows - self._batch_size], [0, 0]])


def make_train_batches(  # noqa: PLR0917
    store: SequenceStore,
    config: ml_collections.ConfigDict,
    cut: Cut | None = None,
    encoders: Mapping[str, DistinctReader] | None = None,
    held_out: np.ndarray | None = None,
    gate: GateInputs | None = None,
) -> TrainBatches:
    """The training batches that the config asks for.

    Args:
      store: the sequences.
      config: sections `train` and `model`, and the seed.
      cut: the part of a batch that this process reads; by default all.
      encoders: trainable content encoders, by modality.
      held_out: bool [num_classes], items that are left out of all windows.
      gate: for a model with memories.
    """
    train = config.train
    return TrainBatches(
        store,
        batch_size=train.batch_size,
        max_length=config.model.max_length,
        seed=config.seed,
        windows=train.windows,
        window_stride=train.window_stride,
        time_noise=train.time_noise,
        packing=train.packing,
        encoders=encoders,
        held_out=held_out,
        trained=trained_lengths(store.lengths, config),
        gate=gate,
        cut=cut,
    )


class EvalBatches:
    """All users once, for ranking the item that was held out.

    Users come in the order of the lengths of their histories, if there are several batches. A batch
    of short histories has narrow windows: a half or a quarter of `max_length`.

    Attributes:
      users: int64 [num_users], the order in which they come.

    Args:
      store: the sequences.
      split: "validation" or "test".
      batch_size: users per batch; the last one is filled up with rows whose row_mask is False.
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
        self._ends = tf.constant(store.lengths - HELD_OUT[split])
        self._batch_size = batch_size
        self._max_length = max_length
        self._exclude_padding_class = exclude_padding_class
        longest = int(store.lengths.max()) - HELD_OUT[split]
        self._seen = longest if full_history else min(longest, max_length)
        self._keep_seen = keep_seen
        self._rows = range(batch_size)[rows]
        self.num_users = store.lengths.size
        self.num_batches = -(-self.num_users // batch_size)
        self.users = np.arange(self.num_users)
        if self.num_batches >= _SORTED_FROM:
            self.users = np.argsort(store.lengths, kind="stable")
        self._order = tf.constant(self.users)

    def answers(self) -> np.ndarray:
        """The item that was held out of each user's sequence, in the users' own order."""
        return np.concatenate(
            [
                self._store.rows(users).windows(tf.gather(self._ends, users) + 1, 1)[:, 0]
                for users in users_in_chunks(np.arange(self.num_users))
            ]
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches.

        Each is {"item_sequence" and "times": int32 [rows, L or less], "answers": int32 [rows],
        "excluded": int32 [rows, width] (-1 where there is nothing), "missed": bool [rows], answers
        that can't be recommended, since the user has seen them; "row_mask": bool [rows]}. Times are
        minutes since 1970, and 0 on padding.
        """
        for step, batch in enumerate(_stream(self._dataset)):
            width = self._width(step)
            narrow = {name: batch[name][:, -width:] for name in ("item_sequence", "times")}
            yield batch | narrow

    def _width(self, step: int) -> int:
        """How many positions a batch's histories need; one of three numbers."""
        if self.num_batches < _SORTED_FROM:
            return self._max_length
        longest = self.users[min((step + 1) * self._batch_size, self.num_users) - 1]
        needed = int(self._ends[longest])
        widths = (-(-self._max_length // 4), -(-self._max_length // 2))
        return next((width for width in widths if width >= needed), self._max_length)

    @functools.cached_property
    def _dataset(self) -> tf.data.Dataset:
        """Traced once, however often it is iterated over."""
        return tf.data.Dataset.range(self.num_batches).map(
            _without_conversion(self._batch),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )

    def _batch(self, step: tf.Tensor) -> dict[str, tf.Tensor]:
        row = tf.range(self._rows.start, self._rows.stop, dtype=tf.int64)
        position = step * self._batch_size + row
        users = tf.gather(self._order, tf.minimum(position, self.num_users - 1))
        ends = tf.gather(self._ends, users)
        rows = self._store.rows(users)
        answers = rows.windows(ends + 1, 1)[:, 0]
        seen = rows.windows(ends, self._seen)
        missed = tf.reduce_any(seen == answers[:, None], axis=1)
        if self._keep_seen:
            seen, missed = seen[:, :0], tf.zeros_like(missed)
        with_padding = self._exclude_padding_class | (ends < self._max_length)
        return {
            "item_sequence": rows.windows(ends, self._max_length),
            "times": rows.times(ends, self._max_length),
            "answers": answers,
            "excluded": excluded_classes(seen, answers, with_padding),
            "missed": missed,
            "row_mask": position < self.num_users,
        }


def users_in_chunks(users: np.ndarray, length: int = 1) -> Iterator[tf.Tensor]:
    """Users int64, in chunks that are small enough for windows of this length in memory."""
    number = max(1, _ITEMS_AT_A_TIME // length)
    for start in range(0, users.size, number):
        yield tf.constant(users[start : start + number], tf.int64)


def _without_conversion(function: Callable[..., Any]) -> Callable[..., Any]:
    """Has tf.data trace `function` without AutoGraph, which costs 0.4 s and finds nothing to do.

    The batches' functions have no `if` and no loop over tensors.
    """
    return tf.autograph.experimental.do_not_convert(function)


def _stream(dataset: tf.data.Dataset) -> Iterator[Batch]:
    """Batches as arrays; raises the pipeline's errors as UserError, without TensorFlow's frames."""
    try:
        yield from dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    except tf.errors.OpError as error:
        lines = [line for line in error.message.splitlines() if line.strip()]
        raise UserError(lines[0] if lines else str(error)) from error


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
