"""Content stream from images, with an encoder that is trained.

The batch brings the pixels of its distinct items (or what the frozen stages make of them), each
device those of its share; a catalogue of pictures is too large to lie on the device.
"""

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from tssr_jax import collectives
from tssr_jax.collectives import Axis
from tssr_jax.models.content.bert import unit_length
from tssr_jax.models.content.frozen import DistinctFeatures
from tssr_jax.models.content.resnet import (
    STATISTICS,
    ResNet,
    ResNetConfig,
    normalise,
    pool,
)
from tssr_jax.models.content.trained import NO_ITEM, MicroBatches, joined

BATCH_STATISTICS = ("frozen", "synchronised")


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
      synchronised: whether training normalises by the statistics of a micro-batch of all devices
        (and keeps a running mean of them), or by the kept ones, which then stay as they are.
      micro_batch: images encoded at a time.
    """

    config: ResNetConfig
    first_stage: int
    synchronised: bool
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
        self, params: Any, inputs: Any, part: ImagePart, axis: Axis, *, train: bool
    ) -> tuple[DistinctFeatures, Any]:
        """See `TrainedEncoder`."""
        del inputs
        by_batch = train and self.synchronised
        net = ResNet(self.config, axis)
        weights = {name: value for name, value in params.items() if name != STATISTICS}
        kept = jax.lax.stop_gradient(params[STATISTICS])

        def some(weights: Any, kept: Any, ids: jax.Array, rows: jax.Array) -> tuple[jax.Array, Any]:
            exists = ids != NO_ITEM
            x, new = net.apply(
                {"params": weights, STATISTICS: kept},
                normalise(rows) if self.first_stage < 0 else rows,
                self.first_stage,
                self.num_layers,
                exists if by_batch else None,
                method=ResNet.run,
                mutable=[STATISTICS],
            )
            vectors = unit_length(pool(cast(jax.Array, x)))
            return jnp.where(exists[:, None], vectors, 0.0), new[STATISTICS] if by_batch else {}

        run = MicroBatches(some, self.micro_batch, axis if by_batch else None)
        vectors, statistics = run(weights, kept, part.ids, part.rows)
        features = joined([part.ids], [vectors.reshape(part.ids.size, -1)], axis)
        if not by_batch:
            return features, {}
        return features, {STATISTICS: self._mean(params[STATISTICS], statistics, part.ids, axis)}

    def _mean(self, kept: Any, new: Any, ids: jax.Array, axis: Axis) -> Any:
        """The mean of what each micro-batch made of the kept statistics."""
        busy = (ids.reshape(-1, self.micro_batch) != NO_ITEM).any(axis=1).astype(jnp.float32)
        busy = collectives.pmax(busy, axis)
        number = jnp.maximum(busy.sum(), 1)

        def mean(old: jax.Array, values: jax.Array) -> jax.Array:
            return jnp.where(busy.sum() > 0, values.sum(axis=0) / number, old)

        return jax.tree.map(mean, kept, new)
