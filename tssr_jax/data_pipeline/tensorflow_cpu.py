"""TensorFlow as this project uses it: tf.data and summaries, on the host.

Import `tf` from here: TensorFlow must never take the accelerator's memory from JAX.
"""

import os

# Must be set before TensorFlow is first imported; the user's own choice wins.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Nothing is computed in TensorFlow, and with oneDNN on it prints two lines at each start.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

# Keras is not needed; this delays its import, which saves a third of the time.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import tensorflow as tf

tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")

__all__ = ["tf"]
