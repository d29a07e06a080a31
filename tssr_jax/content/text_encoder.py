"""Content stream from texts, with an encoder that is trained.

Trains either layers of a BERT (all, or the top ones), or low-rank adapters of their attention
(LoRA, arXiv 2106.09685): W + (alpha / rank) A B, with W frozen.
"""

import dataclasses
from collections.abc import Mapping
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
# The output of adapters is scaled by this, divided by their rank.
_LORA_ALPHA = 16.0


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

    Texts lie side by side in rows, so that little padding is computed. A token attends to the
    tokens of its own text.

    Attributes:
      bert: the whole encoder.
      first_layer: the first trained layer; -1 if the embeddings are run as well.
      pooling: see `Bert.pool`.
      row_length: tokens of a row; at least those of the longest text.
      micro_batch: rows of a step whose activations are kept; further rows are encoded a quarter of
        that at a time, and their activations are computed again in the backward pass.
      lora_rank: rank of the adapters; 0 trains the layers themselves.
    """

    bert: Bert
    first_layer: int
    pooling: str
    row_length: int
    micro_batch: int
    lora_rank: int = 0

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

    @property
    def further_rows(self) -> int:
        """Rows that are encoded at a time beyond the first `micro_batch`."""
        return max(1, self.micro_batch // 4)

    def number_of_rows(self, least: int) -> int:
        """The number of rows that `encode` accepts next to this number."""
        further = max(0, least - self.micro_batch)
        return self.micro_batch + -(-further // self.further_rows) * self.further_rows

    def encode(self, params: Any, inputs: TextInputs, ids: jax.Array) -> jax.Array:
        """Unit vectors of items, zeros for those without text.

        Args:
          params: parameters of the trained part.
          inputs: inputs of all classes.
          ids: int [rows, texts], the items whose texts share a row; `NO_ITEM` is padding. The
            number of rows is a `number_of_rows`; rows without a text are last.

        Returns:
          [rows, texts, hidden].
        """
        first, further = ids[: self.micro_batch], ids[self.micro_batch :]
        vectors = self._vectors(params, inputs, first, ())
        if not further.size:
            return vectors
        run = MicroBatches(self._vectors, self.further_rows)
        return jnp.concatenate(
            [vectors, run(params, inputs, further, ()).reshape(*further.shape, -1)]
        )

    def _vectors(self, params: Any, inputs: TextInputs, ids: jax.Array, _: Any) -> jax.Array:
        weights = self.merged(params, inputs.base)
        exists = ids != NO_ITEM
        items = jnp.where(exists, ids, 0)
        lengths = jnp.where(exists, inputs.lengths[items], 0)
        ends = jnp.cumsum(lengths, axis=1)
        starts = ends - lengths
        # Which text each token belongs to; tokens after the last text belong to one more.
        columns = jnp.arange(self.row_length)
        text = jnp.sum(columns[:, None] >= ends[:, None, :], axis=2)  # [rows, row_length]
        own = jnp.minimum(text, ids.shape[1] - 1)
        offsets = columns - jnp.take_along_axis(starts, own, axis=1)
        last = inputs.tokens.shape[1] - 1
        x = inputs.tokens[jnp.take_along_axis(items, own, axis=1), jnp.clip(offsets, 0, last)]
        if self.first_layer < 0:
            x = self._apply(weights, x, jnp.clip(offsets, 0, last), method=Bert.embed)
        mask = text[:, :, None] == text[:, None, :]
        layers = (max(0, self.first_layer), self.num_layers)
        x = self._apply(weights, x, mask, *layers, method=Bert.run)
        belongs = text[:, None, :] == jnp.arange(ids.shape[1])[:, None]  # [rows, texts, row_length]
        pooled = self._apply(weights, x, belongs, self.pooling, method=Bert.pool)
        return jnp.where(lengths[:, :, None] > 0, unit_length(pooled), 0.0)

    def distinct_features(
        self, params: Any, inputs: TextInputs, part: jax.Array, axis: Axis
    ) -> DistinctFeatures:
        """See `TrainedEncoder`; `part` is int [rows, texts], see `encode`."""
        vectors = self.encode(params, inputs, part)
        return joined([part.reshape(-1)], [vectors.reshape(part.size, -1)], axis)

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
        scale = _LORA_ALPHA / self.lora_rank
        weights = dict(base)
        for name, modules in params.items():
            weights[name] = dict(base[name])
            for module, adapter in modules.items():
                kernel = base[name][module]["kernel"] + scale * (adapter["a"] @ adapter["b"])
                weights[name][module] = {**base[name][module], "kernel": kernel}
        return weights

    def _apply(self, params: Any, *arguments: Any, method: Any) -> jax.Array:
        return cast(jax.Array, self.bert.apply({"params": params}, *arguments, method=method))
