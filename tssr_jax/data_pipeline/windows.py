"""Training windows: which there are, without held-out items, in another order."""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections
import numpy as np

from tssr_jax.data_pipeline.splits import MINUTES_PER_DAY
from tssr_jax.data_pipeline.tensorflow_cpu import tf

# A noise, in minutes, that reorders items of one minute and hardly any others.
_WITHIN_A_MINUTE = 0.01


class TrainWindows:
    """The training windows of all users.

    A window has at least two items, and at most max_length + 1: the last one is only a target.

    Args:
      trained: int64 [num_users], how many items of each user windows may have.
      kind: "last", the newest window of each user; "strided", windows whose ends are `stride`
        items apart, until all items are in one.
      max_length: L, the most inputs of a window.
      stride: items between the ends of two "strided" windows; at most L.
    """

    def __init__(self, trained: np.ndarray, kind: str, max_length: int, stride: int):
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


def held_out_items(config: ml_collections.ConfigDict, num_items: int) -> np.ndarray | None:
    """Bool [num_classes]: the share `train.held_out_items` of the items, drawn by the seed."""
    share = config.train.held_out_items
    if not share:
        return None
    draws = np.random.default_rng([config.seed, num_items]).random(num_items + 1)
    return (draws < share) & (np.arange(num_items + 1) > 0)


def without_items(held_out: np.ndarray, windows: tf.Tensor, *others: tf.Tensor) -> list[tf.Tensor]:
    """Windows int32 [rows, length] without these items; others move right.

    A window with a single item left has nothing to predict, and is emptied.

    Args:
      held_out: bool [num_classes].
      windows: left padded.
      *others: what belongs to the items of `windows`, e.g. their times, [rows, length].
    """
    kept = (windows > 0) & ~tf.gather(tf.constant(held_out), windows)
    kept &= tf.math.count_nonzero(kept, axis=1, keepdims=True) > 1
    order = tf.argsort(tf.cast(kept, tf.int32), axis=1, stable=True)
    return [
        tf.gather(tf.where(kept, values, tf.zeros([], values.dtype)), order, batch_dims=1)
        for values in (windows, *others)
    ]


def reorder(
    scales: Sequence[float],
    draws: tf.Tensor,
    windows: tf.Tensor,
    times: tf.Tensor,
    *others: tf.Tensor,
) -> list[tf.Tensor]:
    """Puts the items of each row in the order of their time plus noise; padding stays on the left.

    Items of one minute are in a random order with any scale.

    Args:
      scales: days; each row has one of them, drawn uniformly. The noise is logistic, with a
        standard deviation of one scale; a scale of 1e6 makes the order random.
      draws: uniform numbers in [0, 1), [rows, 1 + length]; the first one chooses the scale.
      windows: int32 [rows, length], left padded.
      times: int32 [rows, length], minutes.
      *others: what else belongs to the items of `windows`, [rows, length].
    """
    chosen = tf.cast(draws[:, :1] * len(scales), tf.int32)
    minutes = tf.maximum(np.array(scales, np.float64) * MINUTES_PER_DAY, _WITHIN_A_MINUTE)
    scale = tf.gather(minutes, chosen)
    uniform = tf.clip_by_value(tf.cast(draws[:, 1:], tf.float64), 1e-7, 1 - 1e-7)
    noise = tf.math.log(uniform / (1 - uniform)) * (np.sqrt(3.0) / np.pi)
    noisy = tf.cast(times, tf.float64) + scale * noise
    order = tf.argsort(tf.where(windows > 0, noisy, -np.inf), axis=1, stable=True)
    return [tf.gather(values, order, batch_dims=1) for values in (windows, times, *others)]
