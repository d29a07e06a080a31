"""What a content encoder that is trained reads of a batch: each distinct item once."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from tssr_jax.content.trained import NO_ITEM, TrainedEncoder
from tssr_jax.data_pipeline.tensorflow_cpu import tf


class PreparedEncoder(Protocol):
    """An encoder with what it reads, prepared for a catalogue."""

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
        """What the encoder reads of a batch; runs inside of a tf.data pipeline.

        Args:
          items: int32 [rows, length] of the global batch, 0 is padding.
          num_devices: of the run.
          mine: those of this process.

        Returns:
          Tree of tensors [number, ...], a share for each device of this process side by side.
        """

    def catalogue_parts(self, num_devices: int, mine: slice) -> Iterator[Any]:
        """The same for all items, in as many parts as memory asks for, all of one shape."""


@dataclasses.dataclass(frozen=True)
class DistinctItems:
    """Finds them, by buckets.

    Attributes:
      bucket_of_item: int [num_classes]; items with a negative one are left out.
      units: the encoder's micro-batch in each bucket.
    """

    bucket_of_item: np.ndarray
    units: tuple[int, ...]

    def __call__(self, items: tf.Tensor, num_devices: int) -> tuple[tf.Tensor, ...]:
        """Of each bucket, the distinct items of a batch, dealt out to the devices.

        Args:
          items: int32 [rows, length] of the global batch, 0 is padding.
          num_devices: of the run.

        Returns:
          For each bucket int32 [num_devices, number], filled up with `NO_ITEM`; as wide as no
          batch of that size ever needs, so that shapes stay the same.
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
            # Dealt out like cards: every device gets as much to do.
            found.append(
                tf.ensure_shape(tf.transpose(tf.reshape(own, [share, -1])), [num_devices, share])
            )
        return tuple(found)
