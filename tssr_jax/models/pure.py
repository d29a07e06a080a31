"""The model as pure functions of its parameters."""

from collections.abc import Mapping
from typing import Any, cast

import jax

from tssr_jax.models.content.fusion import ContentFeatures
from tssr_jax.models.head import HeadWeights
from tssr_jax.models.packing import Packed
from tssr_jax.models.tssr import TSSR, TSSROutputs


def encode(
    model: TSSR,
    params: Mapping[str, Any],
    item_sequence: jax.Array,
    item_features: ContentFeatures | None,
    packed: Packed | None = None,
    *,
    dropout_key: jax.Array | None = None,
    last_only: bool = False,
) -> TSSROutputs:
    """`TSSR.encode` as a pure function of the parameters; with a key, dropout is on."""
    outputs = model.apply(
        {"params": params},
        item_sequence,
        item_features,
        packed,
        deterministic=dropout_key is None,
        last_only=last_only,
        method=TSSR.encode,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )
    return cast(TSSROutputs, outputs)


def embed_items(
    model: TSSR,
    params: Mapping[str, Any],
    stream: str,
    items: jax.Array,
    item_features: ContentFeatures | None,
) -> jax.Array:
    """`TSSR.embed` as a pure function of the parameters."""
    vectors = model.apply({"params": params}, stream, items, item_features, method=TSSR.embed)
    return cast(jax.Array, vectors)


def attention(
    model: TSSR,
    params: Mapping[str, Any],
    item_sequence: jax.Array,
    item_features: ContentFeatures | None,
) -> jax.Array:
    """`TSSR.attention` as a pure function of the parameters."""
    weights = model.apply({"params": params}, item_sequence, item_features, method=TSSR.attention)
    return cast(jax.Array, weights)


def head_weights(
    model: TSSR, params: Mapping[str, Any], item_features: ContentFeatures | None
) -> HeadWeights:
    """`TSSR.head_weights` as a pure function of the parameters."""
    weights = model.apply({"params": params}, item_features, method=TSSR.head_weights)
    return cast(HeadWeights, weights)
