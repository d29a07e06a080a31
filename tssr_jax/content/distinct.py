"""What a trainable content encoder prepares: its parameters, and the inputs of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from tssr_jax.content.trained import TrainedEncoder
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
