"""The distinct items of a batch, which a content encoder that is trained looks at once each."""

import dataclasses

import numpy as np

from data_pipeline.tensorflow_cpu import tf
from tssr_jax.models.content.text import NO_ITEM


@dataclasses.dataclass(frozen=True)
class DistinctItems:
    """Finds them, by buckets.

    Attributes:
      bucket_of_item: int [num_classes]; items with a negative one are left out.
      num_buckets: how many there are.
      unit: micro-batch of the encoder.
    """

    bucket_of_item: np.ndarray
    num_buckets: int
    unit: int

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
        for bucket in range(self.num_buckets):
            own = tf.boolean_mask(distinct, (buckets == bucket) & (distinct > 0))
            most = min(int((self.bucket_of_item == bucket).sum()), int(np.prod(items.shape)))
            share = -(-most // (num_devices * self.unit)) * self.unit
            room = share * num_devices
            own = tf.pad(own, [[0, room - tf.size(own)]], constant_values=NO_ITEM)
            # Dealt out like cards: every device gets as much to do.
            found.append(
                tf.ensure_shape(tf.transpose(tf.reshape(own, [share, -1])), [num_devices, share])
            )
        return tuple(found)
