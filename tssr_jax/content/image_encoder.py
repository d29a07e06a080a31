"""Content stream from images, with an encoder that is trained.

The batch contains the pixels of its distinct items (or the frozen stages' states of them), for each
device its share. A catalogue of pictures is too large for the memory of a device.
"""

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from tssr_jax.content.bert import unit_length
from tssr_jax.content.resnet import (
    STATISTICS,
    ResNet,
    ResNetConfig,
    normalise,
    pool,
)
from tssr_jax.content.trained import NO_ITEM, MicroBatches, joined
from tssr_jax.models.content import DistinctFeatures
from tssr_jax.parallel.collectives import Axis


class ImagePart(NamedTuple):
    """A device's share of the distinct items of a batch.

    Attributes:
      ids: int [number], filled up with `NO_ITEM`.
      rows: uint8 [number, height, width, 3], or float32 [number, height, width, channels].
    """

    ids: Any
    rows: Any


@dataclasses.dataclass(frozen=True)
class TrainedImages:
    """The trained part of an image encoder; see `TrainedEncoder`.

    Attributes:
      config: of the whole encoder.
      first_stage: the first trained stage; -1 is the stem.
      micro_batch: images encoded at a time.
    """

    config: ResNetConfig
    first_stage: int
    micro_batch: int

    @property
    def width(self) -> int:
        """See `TrainedEncoder`."""
        return self.config.num_features

    @property
    def num_layers(self) -> int:
        """See `TrainedEncoder`."""
        return len(self.config.stage_sizes)

    def depth(self, name: str) -> int:
        """See `TrainedEncoder`."""
        if name.startswith("stage_"):
            return self.num_layers - 1 - int(name.removeprefix("stage_"))
        return self.num_layers

    def distinct_features(
        self, params: Any, inputs: Any, part: ImagePart, axis: Axis
    ) -> DistinctFeatures:
        """See `TrainedEncoder`."""
        del inputs
        net = ResNet(self.config)
        weights = {name: value for name, value in params.items() if name != STATISTICS}
        kept = jax.lax.stop_gradient(params[STATISTICS])

        def some(weights: Any, kept: Any, ids: jax.Array, rows: jax.Array) -> jax.Array:
            x = net.apply(
                {"params": weights, STATISTICS: kept},
                normalise(rows) if self.first_stage < 0 else rows,
                self.first_stage,
                self.num_layers,
                method=ResNet.run,
            )
            vectors = unit_length(pool(cast(jax.Array, x)))
            return jnp.where((ids != NO_ITEM)[:, None], vectors, 0.0)

        vectors = MicroBatches(some, self.micro_batch)(weights, kept, part.ids, part.rows)
        return joined([part.ids], [vectors.reshape(part.ids.size, -1)], axis)
