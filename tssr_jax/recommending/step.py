"""What a device does for a batch of histories: states, scores of all classes, the best of them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tssr_jax.models.content.fusion import ContentFeatures
from tssr_jax.models.pure import encode, head_weights
from tssr_jax.models.tssr import TSSR
from tssr_jax.ranking import make_scores_step
from tssr_jax.top_k import best_classes


class Found(NamedTuple):
    """What a batch of users gets.

    Attributes:
      classes: int32 [batch, k], best first; 0 where fewer compete.
      scores: [batch, k], -inf there.
      id_weight: mean of the gate at the newest position, the weight of the id stream, [batch]; NaN
        for a model without a gate.
    """

    classes: jax.Array
    scores: jax.Array
    id_weight: jax.Array


def make_recommend_step(model: TSSR, k: int) -> Callable[..., Found]:
    """Returns the step of one device, `(params, batch, content, allowed) -> Found` of all rows.

    The batch has `item_sequence` int [batch, length], `excluded` int [batch, width] (-1 is none)
    and `row_mask` bool [batch]; `allowed` bool [shard_classes] are the classes that compete.

    Args:
      model: tells how batch and catalogue lie on the devices.
      k: length of a list, at most the number of items.
    """
    catalogue = model.catalogue

    def best(states: Any, scores: jax.Array, excluded: jax.Array) -> Found:
        return Found(*best_classes(scores, excluded, k, catalogue), states[1])

    def step(
        params: Any,
        batch: Mapping[str, Any],
        content: ContentFeatures | None,
        allowed: jax.Array,
    ) -> Found:
        def scorer(*inputs: Any) -> tuple[Any, Callable[[Any], jax.Array]]:
            return _states_and_scores(model, allowed, *inputs)

        run = make_scores_step(model, best, ("excluded",), catalogue.own_rows, scorer)
        return run(params, batch, content)

    return step


def _states_and_scores(
    model: TSSR, allowed: jax.Array, params: Any, batch: Mapping[str, Any], content: Any
) -> tuple[tuple[jax.Array, jax.Array], Callable[[Any], jax.Array]]:
    outputs = encode(model, params, batch["item_sequence"], content, last_only=True)
    weights = head_weights(model, params, content)
    weights = weights._replace(bias=jnp.where(allowed, weights.bias, -jnp.inf))
    states = outputs.fused[:, -1]
    gate = jnp.full(len(states), jnp.nan)
    if outputs.gate is not None:
        gate = outputs.gate[:, -1].mean(axis=-1)
    return (states, gate), lambda rows: weights.score(rows[0], model.compute_dtype)
