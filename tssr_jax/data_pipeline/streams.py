"""How a tf.data pipeline is traced, and read as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.errors import UserError

Batch = dict[str, Any]


def without_conversion(function: Callable[..., Any]) -> Callable[..., Any]:
    """Has tf.data trace `function` without AutoGraph, which costs 0.4 s and finds nothing to do.

    The batches' functions have no `if` and no loop over tensors.
    """
    return tf.autograph.experimental.do_not_convert(function)


def stream(dataset: tf.data.Dataset) -> Iterator[Batch]:
    """Batches as arrays; raises the pipeline's errors as UserError, without TensorFlow's frames."""
    try:
        yield from dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    except tf.errors.OpError as error:
        lines = [line for line in error.message.splitlines() if line.strip()]
        raise UserError(lines[0] if lines else str(error)) from error
