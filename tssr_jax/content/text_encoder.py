"""Content stream from texts, with an encoder that is trained.

Trains either layers of a BERT (all, or the top ones), or low-rank adapters of their attention
(LoRA, arXiv 2106.09685): W + (alpha / rank) A B, with W frozen.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from tssr_jax.content.bert import Bert, unit_length
from tssr_jax.content.trained import NO_ITEM, MicroBatches, joined
from tssr_jax.models.content import DistinctFeatures
from tssr_jax.parallel.collectives import Axis

# The layers of a BERT that LoRA adapts: those of attention.
ADAPTED = ("query", "key", "value", "attention_output")


class TextInputs(NamedTuple):
    """Inputs of the encoder's trained part, for all classes.

    Attributes:
      tokens: int [classes, tokens] if the whole encoder is trained, else states of its frozen
        layers, [classes, tokens, hidden].
      lengths: int [classes], tokens of each text; 0 without one.
      base: the parameters that adapters are added to; {} without adapters.
    """

    tokens: jax.Array | np.ndarray
    lengths: jax.Array | np.ndarray
    base: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TrainedText:
    """The trained part of a text encoder; see `TrainedEncoder`.

    Attributes:
      bert: the whole encoder.
      first_layer: the first trained layer; -1 if the embeddings are run as well.
      pooling: see `Bert.pool`.
      buckets: padded length of each bucket in tokens, ascending; the last one fits all texts.
      micro_batch: texts of the shortest bucket that are encoded at a time, see `texts_at_a_time`.
      lora_rank: rank of the adapters; 0 trains the layers themselves.
      lora_alpha: adapters are scaled by lora_alpha / lora_rank.
    """

    bert: Bert
    first_layer: int
    pooling: str
    buckets: tuple[int, ...]
    micro_batch: int
    lora_rank: int = 0
    lora_alpha: float = 1.0

    @property
    def width(self) -> int:
        """See `TrainedEncoder`."""
        return self.bert.config.hidden_size

    @property
    def num_layers(self) -> int:
        """See `TrainedEncoder`."""
        return self.bert.config.num_hidden_layers

    def depth(self, name: str) -> int:
        """See `TrainedEncoder`."""
        if name.startswith("layer_"):
            return self.num_layers - 1 - int(name.removeprefix("layer_"))
        return 0 if name == "pooler_dense" else self.num_layers

    def texts_at_a_time(self, length: int) -> int:
        """Number of texts of this length in a micro-batch, for equal numbers of tokens."""
        return max(1, self.micro_batch * self.buckets[0] // length)

    def encode(self, params: Any, inputs: TextInputs, ids: jax.Array, length: int) -> jax.Array:
        """Unit vectors of items, zeros for those without text.

        Args:
          params: parameters of the trained part.
          inputs: inputs of all classes.
          ids: int [number], a multiple of `texts_at_a_time`; see `MicroBatches`.
          length: tokens that the texts have at most.

        Returns:
          [number, hidden].
        """

        def some(params: Any, inputs: TextInputs, ids: jax.Array, _: Any) -> jax.Array:
            weights = self.merged(params, inputs.base)
            exists = ids != NO_ITEM
            place = jnp.where(exists, ids, 0)
            lengths = jnp.where(exists, inputs.lengths[place], 0)
            mask = jnp.arange(length) < lengths[:, None]
            x = inputs.tokens[place, :length]
            if self.first_layer < 0:
                x = self._apply(weights, x, method=Bert.embed)
            layers = (max(0, self.first_layer), self.num_layers)
            x = self._apply(weights, x, mask, *layers, method=Bert.run)
            pooled = self._apply(weights, x, mask, self.pooling, method=Bert.pool)
            return jnp.where(lengths[:, None] > 0, unit_length(pooled), 0.0)

        run = MicroBatches(some, self.texts_at_a_time(length))
        return run(params, inputs, ids, ()).reshape(ids.size, -1)

    def distinct_features(
        self, params: Any, inputs: TextInputs, part: Sequence[jax.Array], axis: Axis
    ) -> DistinctFeatures:
        """See `TrainedEncoder`; `part` holds the ids of each bucket, int [number]."""
        vectors = [
            self.encode(params, inputs, own, length)
            for length, own in zip(self.buckets, part, strict=True)
        ]
        return joined(list(part), vectors, axis)

    def split(self, params: dict[str, Any], key: jax.Array) -> tuple[dict[str, Any], Any]:
        """Splits the encoder's parameters into those to train and the base of the adapters.

        Adapters start at zero: A is random, B is zero. Without adapters the base is empty.

        Args:
          params: parameters of the whole encoder.
          key: random key for the initial values of adapters.
        """
        run = {f"layer_{i}" for i in range(max(0, self.first_layer), self.num_layers)}
        run |= {"pooler_dense"} & params.keys()
        if self.first_layer < 0:
            run = set(params)
        own = {name: params[name] for name in sorted(run)}
        if not self.lora_rank:
            return own, {}
        adapters: dict[str, Any] = {}
        for name in (name for name in own if name.startswith("layer_")):
            adapters[name] = {}
            for module in ADAPTED:
                key, own_key = jax.random.split(key)
                rows, columns = own[name][module]["kernel"].shape
                a = jax.random.normal(own_key, (rows, self.lora_rank)) * rows**-0.5
                adapters[name][module] = {"a": a, "b": jnp.zeros((self.lora_rank, columns))}
        return adapters, own

    def merged(self, params: Any, base: Mapping[str, Any]) -> Any:
        """Parameters of the layers that run: the trained ones, or the base plus adapters."""
        if not self.lora_rank:
            return params
        scale = self.lora_alpha / self.lora_rank
        weights = dict(base)
        for name, modules in params.items():
            weights[name] = dict(base[name])
            for module, adapter in modules.items():
                kernel = base[name][module]["kernel"] + scale * (adapter["a"] @ adapter["b"])
                weights[name][module] = {**base[name][module], "kernel": kernel}
        return weights

    def _apply(self, params: Any, *arguments: Any, method: Any) -> jax.Array:
        return cast(jax.Array, self.bert.apply({"params": params}, *arguments, method=method))
