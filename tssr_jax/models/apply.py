"""The model as pure functions of its parameters."""

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from tssr_jax.models import mixing
from tssr_jax.models.content import Features, as_content
from tssr_jax.models.head import HeadWeights
from tssr_jax.models.packing import Packed
from tssr_jax.models.recall import all_scores, recall
from tssr_jax.models.side import NO_SIDE, Side, side_of
from tssr_jax.models.tie_orders import in_tie_order, visited
from tssr_jax.models.tssr import TSSR, TSSROutputs

# Up to so many histories, their orders of items of one time are encoded in one batch.
_FEW_ROWS = 16


def encode(
    model: TSSR,
    params: Mapping[str, Any],
    item_sequence: jax.Array,
    features: Features = None,
    packed: Packed | None = None,
    *,
    side: Side = NO_SIDE,
    dropout_key: jax.Array | None = None,
    last_only: bool = False,
) -> TSSROutputs:
    """States of histories, up to what the prediction head reads.

        outputs = encode(model, params, jnp.array([[0, 3, 7]]), features)
        outputs.fused  # [1, 3, d_model]

    Args:
      model: the module.
      params: its parameters, see `init_params`.
      item_sequence: int [batch, length], oldest first, left padded with 0.
      features: of the items, float32 [num_items + 1, feature_dim], row 0 for padding; by name for
        several modalities; None without a content stream.
      packed: see `TSSR.encode`.
      side: of models that read such, see `models.side`.
      dropout_key: switches dropout on.
      last_only: compute crossed and fused states of the last position only.
    """
    outputs = model.apply(
        {"params": params},
        item_sequence,
        features,
        packed,
        side=side,
        deterministic=dropout_key is None,
        last_only=last_only,
        method=TSSR.encode,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )
    return cast(TSSROutputs, outputs)


def newest(
    model: TSSR, params: Mapping[str, Any], batch: Mapping[str, Any], features: Features = None
) -> TSSROutputs:
    """States of the newest position, for ranking: [batch, 1, d_model].

    They are the mean over `model.tie_orders` orders of the items that have one time.

    Args:
      model: the module.
      params: its parameters.
      batch: `item_sequence` int [batch, length]; `times`, without which no two items have one
        time; and `events` and `profiles` of a model that reads them.
      features: of the items, as `encode` takes them.
    """
    items, times, number = batch["item_sequence"], batch.get("times"), model.tie_orders
    side = side_of(batch)
    if times is None or number == 1:
        return encode(model, params, items, features, side=side, last_only=True)

    orders, needed = visited(items, times, number)
    # Devices that share a catalogue encode together, ties or not.
    alone = model.classes.axis is None

    def mean(some: jax.Array) -> TSSROutputs:
        """The mean over some orders, which are encoded in one batch."""

        def in_order(values: jax.Array) -> jax.Array:
            own = [in_tie_order(items, times, order, number, values) for order in some]
            return jnp.concatenate(own)

        outputs = encode(
            model,
            params,
            in_order(items),
            features,
            side={name: in_order(values) for name, values in side.items()},
            last_only=True,
        )
        return jax.tree.map(
            lambda x: x[:, -1:].reshape(len(some), -1, 1, x.shape[2]).mean(axis=0), outputs
        )

    if len(items) <= _FEW_ROWS:
        # Not by a loop: XLA copies what a loop reads, here the vectors of all items.
        if alone:
            return jax.lax.cond(needed <= 2, lambda: mean(orders[:2]), lambda: mean(orders))
        return mean(orders)

    def add(turn: jax.Array, total: TSSROutputs) -> TSSROutputs:
        return jax.tree.map(jnp.add, total, mean(orders[turn][None]))

    shapes = jax.eval_shape(mean, orders[:1])
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    turns = needed if alone else number
    total = jax.lax.fori_loop(0, turns, add, nothing)
    return jax.tree.map(lambda states: states / turns, total)


def score(
    model: TSSR,
    params: Mapping[str, Any],
    item_sequence: jax.Array,
    features: Features = None,
    times: jax.Array | None = None,
    *,
    side: Side = NO_SIDE,
) -> jax.Array:
    """Scores of all classes as the next item of each history.

        scores = score(model, params, jnp.array([[0, 3, 7]]), features)  # [1, num_items + 1]

    Args:
      model: the module.
      params: its parameters.
      item_sequence: int [batch, length], oldest first, left padded with 0.
      features: of the items, as `encode` takes them; a `Content` for a model with memories.
      times: int [batch, length], minutes; items of one minute have no order (`model.tie_orders`),
        and share their place in memories. By default each item has a time of its own.
      side: see `encode`.

    Returns:
      float32 [batch, num_items + 1]; class 0 is padding, and no item.
    """
    batch = {"item_sequence": item_sequence, "times": times, **side}
    batch = {name: values for name, values in batch.items() if values is not None}
    outputs = newest(model, params, batch, features)
    weights = head_weights(model, params, features)
    memories = as_content(features, model.modalities).memories
    recalled = recall(model, params, batch, memories)
    return all_scores(model, params, weights, outputs.fused[:, -1], recalled, memories)


def embed_items(
    model: TSSR, params: Mapping[str, Any], stream: str, items: jax.Array, features: Features
) -> jax.Array:
    """Vectors by which a stream reads items, int [batch, length] -> [batch, length, d_model]."""
    vectors = model.apply({"params": params}, stream, items, features, method=TSSR.embed)
    return cast(jax.Array, vectors)


def attention(
    model: TSSR,
    params: Mapping[str, Any],
    item_sequence: jax.Array,
    features: Features,
    side: Side = NO_SIDE,
) -> jax.Array:
    """Attention weights between positions, [layers, streams, batch, length, length]."""
    own = {"params": params}, item_sequence, features, side
    weights = model.apply(*own, method=TSSR.attention)
    return cast(jax.Array, weights)


def head_weights(model: TSSR, params: Mapping[str, Any], features: Features = None) -> HeadWeights:
    """Kernel [d_model, shard_classes] and bias [shard_classes] that score fused states."""
    weights = model.apply({"params": params}, features, method=TSSR.head_weights)
    return cast(HeadWeights, weights)


def heads(
    model: TSSR, params: Mapping[str, Any], features: Features = None
) -> dict[str, HeadWeights]:
    """Head weights of each prediction: {"joint"}, or with experts one entry for each."""
    weights = head_weights(model, params, features)
    if not model.predicts_by_experts:
        return {"joint": weights}
    return mixing.weights_of_each(weights, id_reads_content=model.id_reads_content)
