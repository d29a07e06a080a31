"""Training batches by tf.data: fixed-length, left-padded windows over the users' sequences.

A training batch is a pure function of (seed, epoch, step): a keyed permutation of indices selects
its windows, without a shuffle buffer, so that a run can resume at any step. The order of items in
reordered windows is keyed by (seed, step). Leave-one-out
(docs/reference/method.md, "Evaluation protocol"), with s the sequence of a user:

    training     inputs s[-L-3:-3], labels s[-L-2:-2], or earlier windows (`TrainWindows`)
    validation   predicts s[-2] from what is before it
    test         predicts s[-1] from what is before it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import ml_collections
import numpy as np

from tssr_jax.data_pipeline.gate_rows import trained_lengths
from tssr_jax.data_pipeline.packing import PackedRows, pack_tensors, packed_rows
from tssr_jax.data_pipeline.store import EVENT, ITEMS, MINUTES, WEIGHT, SequenceStore
from tssr_jax.data_pipeline.streams import Batch, stream, without_conversion
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.data_pipeline.windows import TrainWindows, reorder, without_items
from tssr_jax.errors import UserError

# The most windows whose lengths tell how many rows batches need.
_MOST_LENGTHS = 2**18
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
            trained = store.splits.trained
        self._windows = TrainWindows(trained, windows, max_length, window_stride)
        self._gate = gate
        self._batch_size = batch_size
        self._max_length = max_length
        self._seed = seed
        self._time_noise = tuple(time_noise)
        self._encoders = encoders or {}
        self._held_out = held_out
        self._cut = cut or Cut(batch_size)
        self._rows = range(self._cut.num_rows)[self._cut.rows]
        self.num_users = self._windows.num_users
        self.num_windows = self._windows.number
        self._packed_rows = self._find_packed_rows() if packing else None
        self.steps_per_epoch = -(-self.num_windows // batch_size)

    def iterate(self, start_step: int) -> Iterator[Batch]:
        """Batches of the global steps start_step, start_step + 1, ...

        Each is {"item_sequence", "labels" and "times", minutes since 1970: int32 [rows, L],
        "row_mask": bool [rows]}; where the data has such, "events" and "profiles" int32 [rows, L],
        of the inputs, and "label_weights" float32 [rows, L], 0 where nothing is predicted. With
        packing also "packed", see `packing.pack`; with encoders also "distinct", the inputs of this
        process's devices by modality, see `DistinctReader.part`; with a gate also "gate", its rows.
        """
        dataset = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
        dataset = dataset.map(
            without_conversion(self._batch),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        return stream(dataset)

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
        columns = [rows.last(name, *window) for name in rows.columns]
        sizes = tf.minimum(ends, self._max_length + 1)
        if self._held_out is not None:
            columns = without_items(self._held_out, *columns)
            sizes = tf.math.count_nonzero(columns[0], axis=1)
            row_mask &= sizes > 0
        if self._time_noise:
            columns = reorder(self._time_noise, self._draws(step)[read], *columns)
        windows = columns[0]
        batch = {"row_mask": row_mask[own]}
        devices = self._cut.num_devices
        if self._encoders:
            first, end = (n * devices // self._cut.num_rows for n in (own.start, own.stop))
            batch["distinct"] = {
                name: prepared.part(windows[:, :-1], devices, slice(first, end))
                for name, prepared in self._encoders.items()
            }
        if whole:
            columns = [values[own] for values in columns]
        taken = dict(zip(rows.columns, columns, strict=True))
        inputs = taken[ITEMS][:, :-1]
        batch |= {"item_sequence": inputs, "labels": taken[ITEMS][:, 1:]}
        batch["times"] = taken[MINUTES][:, :-1]
        batch |= {name: taken[column][:, :-1] for name, column in self._store.side.items()}
        batch |= self._label_weights(taken)
        if self._packed_rows:
            first = self._rows.start * devices // self._cut.num_rows
            few, most = self._packed_rows
            numbers = tf.where(epoch > 0, [few, most], most)  # a second program pays later only
            sizes = tf.maximum(sizes - 1, 0)
            batch["packed"] = pack_tensors(inputs, sizes, devices, first, numbers)
        if self._gate is not None:
            batch["gate"] = self._gate_rows(step)
        return batch

    def _label_weights(self, taken: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Weights of the labels, where the data has such."""
        weights = None
        if self._store.predicted is not None:
            weights = tf.gather(tf.cast(self._store.predicted, tf.float32), taken[EVENT][:, 1:])
        if self._store.weighted:
            own = taken[WEIGHT][:, 1:]
            weights = own if weights is None else weights * own
        return {} if weights is None else {"label_weights": weights}

    def _find_packed_rows(self) -> PackedRows:
        """Packed rows of each device."""
        if not self.num_windows:
            raise UserError(NOTHING_TO_TRAIN_ON)
        step = -(-self.num_windows // _MOST_LENGTHS)
        _, ends = self._windows(tf.range(0, self.num_windows, step, dtype=tf.int64))
        sizes = np.minimum(ends.numpy() - 1, self._max_length)
        share = self._cut.num_rows // self._cut.num_devices
        return packed_rows(sizes, share, self._max_length, self._seed)

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
        trained=trained_lengths(store, config),
        gate=gate,
        cut=cut,
    )
