"""Inputs of a trainable content encoder for a batch: each distinct item once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from tssr_jax.content.trained import NO_ITEM, TrainedEncoder
from tssr_jax.data_pipeline.tensorflow_cpu import tf


class PreparedEncoder(Protocol):
    """A trainable encoder with its inputs, prepared for a catalogue."""

    @property
    def key(self) -> str:
        """Identifies content, encoder and settings."""

    @property
    def encoder(self) -> TrainedEncoder:
        """The trained part."""

    @property
    def params(self) -> Any:
        """Its pretrained parameters."""

    @property
    def inputs(self) -> Any:
        """What every step reads, as host arrays."""

    def part(self, items: tf.Tensor, num_devices: int, mine: slice) -> Any:
        """The encoder's inputs for a batch; runs inside a tf.data pipeline.

        Args:
          items: int32 [rows, length] of the global batch, 0 is padding.
          num_devices: number of devices of the run.
          mine: the devices of this process.

        Returns:
          Tree of tensors [number, ...], a share for each device of this process side by side.
        """

    def catalogue_parts(self, num_devices: int, mine: slice) -> Iterator[Any]:
        """The encoder's inputs for all items, in parts of one shape that fit in memory."""


@dataclasses.dataclass(frozen=True)
class DistinctItems:
    """Finds the distinct items of a batch, by bucket.

    Attributes:
      bucket_of_item: int [num_classes]; items with a negative one are left out.
      units: the encoder's micro-batch in each bucket.
    """

    bucket_of_item: np.ndarray
    units: tuple[int, ...]

    def __call__(self, items: tf.Tensor, num_devices: int) -> tuple[tf.Tensor, ...]:
        """The distinct items of a batch, by bucket, distributed over the devices.

        Args:
          items: int32 [rows, length] of the global batch, 0 is padding.
          num_devices: number of devices of the run.

        Returns:
          For each bucket int32 [num_devices, number], padded with `NO_ITEM`; wide enough for any
          batch of this size, so that shapes are constant.
        """
        distinct = tf.sort(tf.unique(tf.reshape(items, [-1])).y)
        buckets = tf.gather(tf.constant(self.bucket_of_item, tf.int32), distinct)
        found = []
        for bucket, unit in enumerate(self.units):
            own = tf.boolean_mask(distinct, (buckets == bucket) & (distinct > 0))
            most = min(int((self.bucket_of_item == bucket).sum()), int(np.prod(items.shape)))
            share = -(-most // (num_devices * unit)) * unit
            room = share * num_devices
            own = tf.pad(own, [[0, room - tf.size(own)]], constant_values=NO_ITEM)
            # Round robin, so that every device gets an equal share.
            found.append(
                tf.ensure_shape(tf.transpose(tf.reshape(own, [share, -1])), [num_devices, share])
            )
        return tuple(found)
