"""Packs several short windows into one row, so that encoders compute little padding.

A batch keeps its windows, and also gets a packed form of their tokens: rows that hold several
windows in sequence. The model encodes the packed rows, separates windows by their segments, and
moves the states back to the windows' positions, so that losses do not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tssr_jax.data_pipeline.tensorflow_cpu import tf

# To find how many rows batches need: windows that are packed on trial, the fewest batches, and
# standard deviations above the mean.
_WINDOWS_ON_TRIAL, _FEWEST_BATCHES, _DEVIATIONS = 16_384, 16, 5.0
# A second program has to save at least this share of the rows.
_WORTH = 0.1


class PackedRows(NamedTuple):
    """Into how many rows batches are packed: a step is compiled for each number.

    Attributes:
      few: fit most batches, with the least work if the others use `most`. Used from the second
        epoch on.
      most: fit nearly all batches: all but one in a million, if the numbers of rows that batches
        need are distributed normally. (What needs more has as many rows as windows.)
    """

    few: int
    most: int


def packed_rows(sizes: np.ndarray, share: int, length: int, seed: int) -> PackedRows:
    """Packs random batches on trial.

    Args:
      sizes: int [number], how many items the windows have that batches are drawn from.
      share: windows of a part of a batch, see `pack`.
      length: of a row.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    trials = max(_FEWEST_BATCHES, _WINDOWS_ON_TRIAL // share)
    drawn = rng.choice(sizes, (trials, share), replace=True)
    needed = 1 + _first_fit(drawn, length)[0].max(axis=1)
    bound = max(needed.max(), needed.mean() + _DEVIATIONS * needed.std())
    most = min(share, int(np.ceil(bound)))
    few = min(np.unique(needed), key=lambda rows: np.where(needed <= rows, rows, most).mean())
    saved = 1 - np.where(needed <= few, few, most).mean() / most
    return PackedRows(int(few) if saved >= _WORTH else most, most)


def pack(
    windows: np.ndarray,
    all_sizes: np.ndarray,
    num_parts: int,
    first_part: int = 0,
    numbers: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Packs the items of left-padded windows.

    Args:
      windows: int32 [rows, length], 0 is padding; a whole number of parts.
      all_sizes: int [all_rows], number of items of each window of the global batch. It is cut into
        `num_parts` equal parts. Each part is packed separately.
      num_parts: number of parts, one for each device.
      first_part: index of the part that holds the first of `windows`.
      numbers: how many rows a part may be packed into, ascending: the first that is enough, or as
        many as it has windows. None: as many as the fullest part needs.

    Returns:
      For all parts of `windows`, int32 [parts * packed_rows, length]: `items`; `segments`, the
      number of each token's window, from 1, or 0 for padding; `positions`, each token's column in
      its window. And `places` int32 [rows, length], the index of each window's tokens in the
      flattened packed rows of its part, or the size of these rows for padding.
    """
    num_rows, length = windows.shape
    share = all_sizes.size // num_parts
    rows_of, starts = _first_fit(all_sizes.reshape(num_parts, share), length)
    number = int(rows_of.max()) + 1
    if numbers is not None:
        number = next((own for own in numbers if own >= number), share)
    own = slice(first_part * share, first_part * share + num_rows)
    sizes = all_sizes[own, None]
    columns = np.arange(length)
    valid = columns >= length - sizes
    first = (rows_of * length + starts).reshape(-1)[own, None]
    places = first + columns - (length - sizes)
    part_size = number * length
    index = (np.arange(num_rows)[:, None] // share * part_size + places)[valid]

    def scattered(values: np.ndarray) -> np.ndarray:
        flat = np.zeros(num_rows // share * part_size, np.int32)
        flat[index] = np.broadcast_to(values, windows.shape)[valid]
        return flat.reshape(-1, length)

    return {
        "items": scattered(windows),
        "segments": scattered(1 + np.arange(num_rows)[:, None]),
        "positions": scattered(columns),
        "places": np.where(valid, places, part_size).astype(np.int32),
    }


def pack_tensors(
    windows: tf.Tensor, all_sizes: tf.Tensor, num_parts: int, first_part: int, numbers: tf.Tensor
) -> dict[str, tf.Tensor]:
    """`pack` inside of a tf.data pipeline."""
    names = ("items", "segments", "positions", "places")

    def run(values: np.ndarray, sizes: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
        packed = pack(values, sizes, num_parts, first_part, numbers.tolist())
        return [packed[name] for name in names]

    tensors = tf.numpy_function(run, [windows, all_sizes, numbers], [tf.int32] * len(names))
    return {
        name: tf.ensure_shape(tensor, [None, windows.shape[1]])
        for name, tensor in zip(names, tensors, strict=True)
    }


def _first_fit(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """First-fit decreasing: the row of each window, and its first column there.

    Args:
      sizes: int [parts, windows].
      capacity: length of a row.

    Returns:
      Two int arrays of the shape of `sizes`; an empty window takes no room.
    """
    rows, starts = np.zeros_like(sizes), np.zeros_like(sizes)
    for part, own in enumerate(sizes):
        used = np.zeros(own.size, np.int64)
        for window in np.argsort(-own, kind="stable"):
            size = own[window]
            if not size:
                break
            row = int(np.argmax(used + size <= capacity))
            rows[part, window], starts[part, window] = row, used[row]
            used[row] += size
    return rows, starts
