"""Content stream from texts, with an encoder that is trained: each distinct item once.

The batch brings the distinct items that occur in it, sorted into buckets by the length of their
texts. Every device encodes its share, in micro-batches whose activations are computed again in the
backward pass, and all get all vectors: what a step costs depends on the distinct items, and its
memory on the size of a micro-batch.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from tssr_jax import collectives
from tssr_jax.collectives import Axis
from tssr_jax.models.content.bert import Bert, unit_length
from tssr_jax.models.content.frozen import DistinctFeatures

# Fills up the distinct items of a batch: no item has this id.
NO_ITEM = jnp.iinfo(jnp.int32).max


class TextInputs(NamedTuple):
    """What the trained part of the encoder reads, of all classes.

    Attributes:
      tokens: int [classes, tokens] if all of it is trained, else the states [classes, tokens,
        hidden] that its frozen layers give.
      lengths: int [classes], tokens of each text; 0 without one.
    """

    tokens: jax.Array | np.ndarray
    lengths: jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class TrainedText:
    """The trained part of a text encoder, as a pure function of its parameters.

    Attributes:
      bert: the whole encoder.
      first_layer: the first trained layer; -1 if the embeddings are trained as well.
      pooling: see `Bert.pool`.
      buckets: tokens that the texts of each bucket are cut to, ascending; the last holds all.
      micro_batch: texts encoded at a time.
    """

    bert: Bert
    first_layer: int
    pooling: str
    buckets: tuple[int, ...]
    micro_batch: int

    def encode(self, params: Any, inputs: TextInputs, ids: jax.Array, length: int) -> jax.Array:
        """Unit vectors of items, zeros for those without text.

        Args:
          params: of the trained part.
          inputs: of all classes.
          ids: int [number], a multiple of `micro_batch`; `NO_ITEM` where there is none. Where
            all of a micro-batch are, nothing is computed.
          length: tokens that the texts have at most.

        Returns:
          [number, hidden].
        """

        def some(ids: jax.Array) -> jax.Array:
            exists = ids != NO_ITEM
            place = jnp.where(exists, ids, 0)
            lengths = jnp.where(exists, inputs.lengths[place], 0)
            mask = jnp.arange(length) < lengths[:, None]
            x = inputs.tokens[place, :length]
            if self.first_layer < 0:
                x = self._apply(params, x, method=Bert.embed)
            layers = (max(0, self.first_layer), self.bert.config.num_hidden_layers)
            x = self._apply(params, x, mask, *layers, method=Bert.run)
            pooled = self._apply(params, x, mask, self.pooling, method=Bert.pool)
            return jnp.where(lengths[:, None] > 0, unit_length(pooled), 0.0)

        def some_or_none(ids: jax.Array) -> jax.Array:
            hidden = self.bert.config.hidden_size
            return jax.lax.cond(
                jnp.any(ids != NO_ITEM),
                jax.checkpoint(some),
                lambda ids: jnp.zeros((ids.size, hidden), jnp.float32),
                ids,
            )

        vectors = jax.lax.map(some_or_none, ids.reshape(-1, self.micro_batch))
        return vectors.reshape(ids.size, -1)

    def distinct_features(
        self, params: Any, inputs: TextInputs, distinct: Sequence[jax.Array], axis: Axis
    ) -> DistinctFeatures:
        """Vectors of the distinct items of the global batch, on every device.

        Args:
          params: of the trained part.
          inputs: of all classes.
          distinct: of each bucket the ids, int [number], that this device encodes.
          axis: the device axis that the batch is cut along.
        """
        ids, vectors = [], []
        for length, own in zip(self.buckets, distinct, strict=True):
            ids.append(collectives.all_gather(own, axis, 0))
            encoded = self.encode(params, inputs, own, length)
            vectors.append(collectives.all_gather(encoded, axis, 0))
        joined = jnp.concatenate(ids)
        order = jnp.argsort(joined)
        return DistinctFeatures(joined[order], jnp.concatenate(vectors)[order])

    def shares(self, num_classes: int, num_devices: int) -> np.ndarray:
        """Ids of all classes for as many devices: int32, filled up with `NO_ITEM`."""
        unit = num_devices * self.micro_batch
        ids = np.full(-(-num_classes // unit) * unit, NO_ITEM, np.int32)
        ids[:num_classes] = np.arange(num_classes)
        return ids

    def catalogue(self, params: Any, inputs: TextInputs, own: jax.Array, axis: Axis) -> jax.Array:
        """Vectors of all classes, [classes, hidden]; each device encodes its `own` ids."""
        vectors = collectives.all_gather(
            self.encode(params, inputs, own, self.buckets[-1]), axis, 0
        )
        return vectors[: inputs.lengths.size]

    def trained(self, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters of the trained part, from those of the whole."""
        names = {f"layer_{i}" for i in range(self.bert.config.num_hidden_layers)}
        lower = {f"layer_{i}" for i in range(max(0, self.first_layer))}
        if self.first_layer >= 0:
            lower |= params.keys() - names - {"pooler_dense"}
        return {name: value for name, value in params.items() if name not in lower}

    def _apply(self, params: Any, *arguments: Any, method: Any) -> jax.Array:
        return cast(jax.Array, self.bert.apply({"params": params}, *arguments, method=method))
