"""Several short windows in one row, so that encoders do not work on padding.

A batch keeps its windows and gets a second form of the same tokens beside it: rows in which
windows lie one after the other. The model encodes those, keeps the windows apart by their segments,
and brings the states back to the windows' places, so that losses see what they always see.
"""

import numpy as np

from tssr_jax.data_pipeline.tensorflow_cpu import tf

# A step is compiled for each number of rows: there are at most so many.
_NUMBERS_OF_ROWS = 32


def pack(
    windows: np.ndarray, all_sizes: np.ndarray, num_parts: int, first_part: int = 0
) -> dict[str, np.ndarray]:
    """Packs the items of left-padded windows.

    Args:
      windows: int32 [rows, length], 0 is padding; a whole number of parts.
      all_sizes: int [all_rows], items of the windows of the global batch. It is cut into
        `num_parts` equal parts, one for each device, each of which is packed by itself, into as
        many rows as the fullest one needs.
      num_parts: see above.
      first_part: that of the first of `windows`.

    Returns:
      For each part of `windows`, all int32 [parts * packed_rows, length]: `items`; `segments`,
      which window a token is of, from 1, and 0 where there is none; `positions`, its column in
      its window. And `places` int32 [rows, length], where in its part's packed rows (flattened)
      a window's token is, or their number where the window has none.
    """
    num_rows, length = windows.shape
    share = all_sizes.size // num_parts
    rows_of, starts = _first_fit(all_sizes.reshape(num_parts, share), length)
    unit = max(1, share // _NUMBERS_OF_ROWS)
    packed_rows = -(-(int(rows_of.max()) + 1) // unit) * unit
    own = slice(first_part * share, first_part * share + num_rows)
    sizes = all_sizes[own, None]
    columns = np.arange(length)
    valid = columns >= length - sizes
    first = (rows_of * length + starts).reshape(-1)[own, None]
    places = first + columns - (length - sizes)
    part_size = packed_rows * length
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
    windows: tf.Tensor, all_sizes: tf.Tensor, num_parts: int, first_part: int
) -> dict[str, tf.Tensor]:
    """`pack` inside of a tf.data pipeline."""
    names = ("items", "segments", "positions", "places")

    def run(values: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        packed = pack(values, sizes, num_parts, first_part)
        return [packed[name] for name in names]

    tensors = tf.numpy_function(run, [windows, all_sizes], [tf.int32] * len(names))
    return {
        name: tf.ensure_shape(tensor, [None, windows.shape[1]])
        for name, tensor in zip(names, tensors, strict=True)
    }


def _first_fit(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """First-fit decreasing: the row that each window goes to, and where in it it starts.

    Args:
      sizes: int [parts, windows].
      capacity: of a row.

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
