"""Training windows: which there are, without held-out items, in another order."""

from typing import Literal

import numpy as np

from tssr_jax.data_pipeline.tensorflow_cpu import tf

EvalSplit = Literal["validation", "test"]
# Items at the end of a sequence that a split must not see as input.
HELD_OUT = {"train": 2, "validation": 2, "test": 1}


class TrainWindows:
    """The training windows of all users.

    A window has at least two items, and at most max_length + 1: the last one is only a target.

    Args:
      lengths: int64 [num_users], lengths of whole sequences.
      kind: "last", the newest window of each user; "strided", windows whose ends are `stride`
        items apart, until all items are in one.
      max_length: L, the most inputs of a window.
      stride: items between the ends of two "strided" windows; at most L.
    """

    def __init__(self, lengths: np.ndarray, kind: str, max_length: int, stride: int):
        trained = lengths - HELD_OUT["train"]
        users = np.flatnonzero(trained >= 2)
        trained = trained[users]
        numbers = np.ones(users.size, np.int64)
        self._stride = 1
        if kind == "strided":
            self._stride = stride
            numbers += -(-np.maximum(trained - (max_length + 1), 0) // stride)
        self.number = int(numbers.sum())
        self.num_users = users.size
        self._users, self._trained = tf.constant(users), tf.constant(trained)
        self._firsts = tf.constant(np.concatenate([[0], np.cumsum(numbers)]))

    def __call__(self, windows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Users of windows int64 [rows], and how many items of the user precede a window's end."""
        place = tf.searchsorted(self._firsts, windows, side="right", out_type=tf.int64) - 1
        back = (windows - tf.gather(self._firsts, place)) * self._stride
        return tf.gather(self._users, place), tf.gather(self._trained, place) - back


def without_items(
    windows: tf.Tensor, held_out: np.ndarray, times: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Windows int32 [rows, length], and their times, without these items; others move right.

    A window with a single item left has nothing to predict, and is emptied.

    Args:
      windows: left padded.
      held_out: bool [num_classes].
      times: of the items of `windows`.
    """
    kept = (windows > 0) & ~tf.gather(tf.constant(held_out), windows)
    kept &= tf.math.count_nonzero(kept, axis=1, keepdims=True) > 1
    order = tf.argsort(tf.cast(kept, tf.int32), axis=1, stable=True)
    windows, times = (tf.where(kept, values, 0) for values in (windows, times))
    return tf.gather(windows, order, batch_dims=1), tf.gather(times, order, batch_dims=1)


def reorder(
    windows: tf.Tensor, times: tf.Tensor, rate: float, draws: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Puts the items of a share of the rows in a random order; padding stays on the left.

    A row's first draw decides whether it is reordered, the others order its columns.
    """
    places = tf.linspace(0.0, 1.0, windows.shape[1])
    keys = tf.where(draws[:, :1] < rate, draws[:, 1:], places)
    keys = tf.where(windows > 0, keys, -1.0)
    order = tf.argsort(keys, stable=True)
    return tf.gather(windows, order, batch_dims=1), tf.gather(times, order, batch_dims=1)
