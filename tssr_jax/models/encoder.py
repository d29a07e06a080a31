"""The encoder blocks of all streams and layers, compiled only once.

The blocks differ only in their parameters. Written out, each would be compiled separately, forward
and backward. Here the parameters and states of the streams are stacked along a leading axis, and a
loop runs over the layers.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from tssr_jax.models.attention import WEIGHTS
from tssr_jax.models.blocks import SAVED, EncoderBlock
from tssr_jax.parallel.platform import platform


class Encoded(NamedTuple):
    """States of all streams, each [streams, batch, length, d_model].

    Attributes:
      unimodal: after the self-attention blocks.
      crossed: after the cross-attention blocks; `unimodal` where there are none.
    """

    unimodal: jax.Array
    crossed: jax.Array


class StreamEncoders(nn.Module):
    """Self-attention blocks of each stream, then blocks that attend to the other stream.

    Every cross-attention block attends to the OTHER stream's states before the first of these
    blocks. A parameter is [layers, streams, ...], the self-attention blocks first.

    Attributes:
      block: the module of all blocks.
      num_unimodal: self-attention blocks of each stream.
      num_cross: cross-attention blocks of each stream; 0 with one stream.
      keep_products: keep products for the gradient; otherwise recompute a block from its input.
    """

    block: EncoderBlock
    num_unimodal: int
    num_cross: int
    keep_products: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, key: jax.Array | None, *, last_only: bool = False
    ) -> Encoded:
        """Encodes the streams.

        Args:
          x: [streams, batch, length, d_model].
          mask: bool [batch, length, length], see `EncoderBlock`.
          key: random key of dropout; None switches it off.
          last_only: compute `crossed` at the last position only, [streams, batch, 1, d_model].

        Raises:
          ValueError: if `last_only` is asked for with dropout.
        """
        shape = (self.num_unimodal + self.num_cross, len(x))
        if not shape[0]:
            return Encoded(x, x[:, :, -1:] if last_only else x)
        params = self._parameters(shape, x.shape[-1])
        if last_only:
            if key is not None:
                raise ValueError("last_only is for ranking, without dropout")
            return self._last_only(params, x, mask)
        keys = None if key is None else jax.random.split(key, shape)

        def run(states: tuple[jax.Array, jax.Array], layer: Any) -> tuple[Any, None]:
            x, other = states
            place, params, keys = layer
            attended = x
            if self.num_cross:
                # The other stream's current states, which all following layers attend to.
                other = jnp.where(place == self.num_unimodal, x[::-1], other)
                attended = jnp.where(place < self.num_unimodal, x, other)
            return (self._apply(params, x, attended, mask, keys), other), None

        # Activations between the products are recomputed for the gradient, which takes no longer
        # than writing them to memory and reading them.
        names = SAVED if self.keep_products else ()
        kept = jax.checkpoint_policies.save_only_these_names(*names)
        run = jax.checkpoint(run, policy=kept, prevent_cse=False)
        (x, other), _ = jax.lax.scan(run, (x, x), (jnp.arange(shape[0]), params, keys))
        return Encoded(other[::-1] if self.num_cross else x, x)

    def _last_only(self, params: Mapping[str, Any], x: jax.Array, mask: jax.Array) -> Encoded:
        """Computes only what the last position's state depends on.

        Cross-attention blocks read other positions only from the other stream's self-attention
        output. Without cross-attention, the last self-attention block needs a single query.
        """
        whole = self.num_unimodal - (not self.num_cross)
        first, rest = (
            jax.tree.map(lambda p, part=part: p[part], params)
            for part in (slice(0, whole), slice(whole, None))
        )

        def attend_to_itself(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
            return self._apply(layer, x, x, mask), None

        unimodal, _ = jax.lax.scan(attend_to_itself, x, first)
        attended = unimodal[::-1] if self.num_cross else unimodal

        def attend(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
            return self._apply(layer, x, attended, mask[:, -1:]), None

        crossed, _ = jax.lax.scan(attend, unimodal[:, :, -1:], rest)
        return Encoded(unimodal if self.num_cross else crossed, crossed)

    def attention(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """How much each position attends to each, mean over heads.

        Args:
          x: [streams, batch, length, d_model].
          mask: bool [batch, length, length].

        Returns:
          [layers, streams, batch, length, length]; rows sum to 1. Cross-attention blocks come last;
          their weights are over the other stream's positions.
        """
        params, weights = self.variables["params"], []
        other = x

        def apply(params: Any, x: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
            collection, name = WEIGHTS
            x, kept = self.block.apply(
                {"params": params}, x, other, mask, deterministic=True, mutable=[collection]
            )
            return x, jnp.stack(kept[collection]["attention"][name]).mean(axis=0)

        for layer in range(self.num_unimodal + self.num_cross):
            own = jax.tree.map(lambda p, layer=layer: p[layer], params)
            if layer == self.num_unimodal:
                other = x[::-1]
            x, of_layer = jax.vmap(apply)(own, x, x if layer < self.num_unimodal else other)
            weights.append(of_layer)
        return jnp.stack(weights)

    def _apply(
        self,
        params: Any,
        x: jax.Array,
        other: jax.Array,
        mask: jax.Array,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """One layer of all streams."""

        def apply(params: Any, x: jax.Array, other: jax.Array, key: jax.Array | None) -> Any:
            rngs = None if key is None else {"dropout": key}
            return self.block.apply(
                {"params": params}, x, other, mask, deterministic=key is None, rngs=rngs
            )

        own = (params, x, other, keys)
        if platform() != "tpu":
            return jax.vmap(apply)(*own)
        # The TPU's compiler would put the axis of two streams where a register has eight rows, and
        # leave six of them empty (docs/internals/performance.md).
        parts = [jax.tree.map(lambda part, i=i: part[i], own) for i in range(len(x))]
        return jnp.stack([apply(*part) for part in parts])

    def _parameters(self, shape: tuple[int, int], d_model: int) -> Mapping[str, Any]:
        """Parameters of all blocks, by their names in a block."""
        if not self.is_initializing():
            return self.variables["params"]

        def init(key: jax.Array) -> Any:
            states, mask = jnp.zeros((1, 1, d_model)), jnp.ones((1, 1, 1), bool)
            return self.block.init(key, states, states, mask, deterministic=True)["params"]

        keys = jax.random.split(self.make_rng("params"), shape)
        stacked = jax.vmap(jax.vmap(init))(keys)
        return {name: self.param(name, lambda _, own=own: own) for name, own in stacked.items()}
