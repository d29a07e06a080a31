"""TensorFlow as this project uses it: tf.data, records and summaries, on the host.

Import `tf` and `tfds` from here. They are imported when something of them is first used: that takes
four seconds, and asking a model needs neither. TensorFlow must never take the accelerator's memory
from JAX.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

# Must be set before TensorFlow is first imported; the user's own choice wins.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Nothing is computed in TensorFlow, and with oneDNN on it prints two lines at each start.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

# Keras is not needed; this delays its import, which saves a third of the time.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")


@functools.cache
def _import_tensorflow() -> Any:
    import tensorflow  # noqa: PLC0415

    tensorflow.config.set_visible_devices([], "GPU")
    tensorflow.config.set_visible_devices([], "TPU")
    return tensorflow


@functools.cache
def _import_datasets() -> Any:
    _import_tensorflow()  # first: datasets would import it without these settings
    import tensorflow_datasets  # noqa: PLC0415

    tensorflow_datasets.disable_progress_bar()
    return tensorflow_datasets


class _OnFirstUse:
    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load

    def __getattr__(self, name: str) -> Any:
        return getattr(self._load(), name)


if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_datasets as tfds
else:
    tf = _OnFirstUse(_import_tensorflow)
    tfds = _OnFirstUse(_import_datasets)

__all__ = ["tf", "tfds"]
