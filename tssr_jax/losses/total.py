"""All loss terms of a training step, and their weighted sum (docs/method.md, step 7)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from tssr_jax import collectives
from tssr_jax.collectives import Axis
from tssr_jax.losses.contrastive import item_grained, pool, user_grained
from tssr_jax.losses.hard_negatives import UserQueue
from tssr_jax.losses.info_nce import ExtraKeys
from tssr_jax.losses.negatives import Negatives
from tssr_jax.losses.next_item import next_item_loss
from tssr_jax.losses.sampled import sampled_next_item_loss
from tssr_jax.losses.term import LossTerm
from tssr_jax.models import experts
from tssr_jax.models.content.fusion import ContentFeatures
from tssr_jax.models.head import HeadWeights
from tssr_jax.models.pure import embed_items, head_weights
from tssr_jax.models.tssr import TSSR, StreamStates, TSSROutputs

PREDICTION = "prediction"
# The same by one stream alone, where `config.model.mixing` is "experts"; the gate's is PREDICTION.
EXPERT_TERMS = {"id": "prediction_id", "content": "prediction_content", "joint": PREDICTION}
# How next items are predicted: against all classes, or drawn ones.
NEXT_ITEM = ("full", "sampled")
USER_TERMS = ("user_text2id", "user_id2text")
ITEM_TERMS = ("item_text2id", "item_id2text")


class Competitors(NamedTuple):
    """What labels and anchors compete with, where it is not what the batch and the catalogue hold.

    Attributes:
      known: bool [shard_classes]; other items do not compete. None lets all compete.
      negatives: of the next items, for `config.loss.next_item="sampled"`.
      hard_items: int [number], further negatives of the item-grained terms; 0 is none.
      users: further negatives of the user-grained terms.
    """

    known: jax.Array | None = None
    negatives: Negatives | None = None
    hard_items: jax.Array | None = None
    users: UserQueue | None = None


ONLY_THE_BATCH = Competitors()


def term_weights(config: ml_collections.ConfigDict) -> dict[str, float]:
    """The factor of each term of the total; terms that are switched off are left out."""
    weights = {PREDICTION: 1.0}
    if len(config.model.streams) == 2:
        if config.model.mixing == "experts":
            weights |= dict.fromkeys(EXPERT_TERMS.values(), 1.0)
        weights |= dict.fromkeys(USER_TERMS, config.loss.lambda_user)
        weights |= dict.fromkeys(ITEM_TERMS, config.loss.lambda_item)
    return {name: weight for name, weight in weights.items() if weight != 0.0}


def loss_terms(
    model: TSSR,
    params: Mapping[str, Any],
    outputs: TSSROutputs,
    batch: Mapping[str, jax.Array],
    config: ml_collections.ConfigDict,
    *,
    item_features: ContentFeatures | None = None,
    competitors: Competitors = ONLY_THE_BATCH,
) -> dict[str, LossTerm]:
    """Computes this device's share of the terms that `term_weights` lists.

    Args:
      model: tells how batch and catalogue lie on the devices.
      params: the model's parameters; the head's weights are read here, not applied by the model,
        because the catalogue's scores are tiled.
      outputs: the model's states.
      batch: `item_sequence` and `labels` int [batch, length], `row_mask` bool [batch].
      config: sections `loss` and `corrections`.
      item_features: for a head that reads content.
      competitors: what the losses of `config.loss` need beside.
    """
    weights = head_weights(model, params, item_features)
    if competitors.known is not None:
        weights = weights._replace(bias=jnp.where(competitors.known, weights.bias, -jnp.inf))
    # Of each term, the state that is scored, and by what.
    scored = {PREDICTION: (outputs.fused, weights)}
    if outputs.experts:
        own = experts.weights_of_each(weights, id_reads_content=model.id_reads_content)
        scored = {EXPERT_TERMS[name]: (x, own[name]) for name, x in outputs.experts.items()}
    terms = {
        name: _prediction(model, *pair, batch, config, competitors=competitors)
        for name, pair in scored.items()
    }
    if outputs.id is None or outputs.content is None:
        return terms
    return terms | _contrasts(model, params, outputs, batch, config, item_features, competitors)


def _contrasts(  # noqa: PLR0917
    model: TSSR,
    params: Mapping[str, Any],
    outputs: TSSROutputs,
    batch: Mapping[str, jax.Array],
    config: ml_collections.ConfigDict,
    item_features: ContentFeatures | None,
    competitors: Competitors,
) -> dict[str, LossTerm]:
    """The user- and item-grained terms that are not switched off."""
    names, axis = term_weights(config), model.rows_axis
    hard_items, users = competitors.hard_items, competitors.users
    terms: dict[str, LossTerm] = {}
    assert outputs.id is not None
    assert outputs.content is not None
    # Anchor stream and target stream of each direction, in the order of the names.
    directions = ((outputs.content, outputs.id, "id"), (outputs.id, outputs.content, "content"))
    if set(USER_TERMS) <= names.keys():
        for name, (anchor, other, stream) in zip(USER_TERMS, directions, strict=True):
            past = None if users is None else users.keys(stream)
            terms[name] = _user_term(anchor, other, batch, config, axis, past)
    if set(ITEM_TERMS) <= names.keys():
        for name, (anchor, other, stream) in zip(ITEM_TERMS, directions, strict=True):
            extra = None
            if hard_items is not None:
                vectors = embed_items(model, params, stream, hard_items[None], item_features)[0]
                extra = ExtraKeys(vectors, hard_items > 0, hard_items)
            terms[name] = item_grained(
                anchor.encoded,
                other.input_embedding,
                batch["item_sequence"],
                valid_positions_only=config.corrections.valid_positions_only,
                mask_false_negatives=config.corrections.mask_false_negatives,
                negatives=config.loss.negatives,
                axis=axis,
                extra=extra,
            )
    return terms


def total_loss(
    terms: Mapping[str, LossTerm], weights: Mapping[str, float], axis: Axis = None
) -> jax.Array:
    """Weighted sum of the terms' means, a scalar.

    With an axis, the terms are this device's shares and so is the result: their sum over the
    devices is the loss of the global batch, and so is the sum of their gradients. (Each sum is
    divided by the global weight; shards hold different numbers of valid positions.)
    """
    means = [
        weight * LossTerm(terms[name].sum, collectives.psum(terms[name].weight, axis)).mean()
        for name, weight in weights.items()
    ]
    return jnp.stack(means).sum()


def _prediction(
    model: TSSR,
    states: jax.Array,
    weights: HeadWeights,
    batch: Mapping[str, jax.Array],
    config: ml_collections.ConfigDict,
    *,
    competitors: Competitors,
) -> LossTerm:
    corrections, loss = config.corrections, config.loss
    counted = batch["labels"] > 0
    if corrections.valid_positions_only:
        counted = counted & (batch["item_sequence"] > 0)
    inputs = states, weights, batch["labels"], counted
    if loss.next_item == "sampled":
        assert competitors.negatives is not None
        return sampled_next_item_loss(
            *inputs,
            competitors.negatives,
            catalogue=model.catalogue,
            compute_dtype=model.compute_dtype,
        )
    return next_item_loss(
        *inputs,
        exclude_padding_class=corrections.exclude_padding_class,
        catalogue=model.catalogue,
        rows_axis=model.rows_axis,
        compute_dtype=model.compute_dtype,
    )


def pooled_states(
    stream: StreamStates, batch: Mapping[str, jax.Array], config: ml_collections.ConfigDict
) -> jax.Array:
    """What the user-grained terms compare, [batch, d_model]."""
    return pool(
        stream.encoded,
        batch["item_sequence"],
        valid_positions=config.corrections.pool_valid_positions,
    )


def _user_term(  # noqa: PLR0917
    anchor: StreamStates,
    other: StreamStates,
    batch: Mapping[str, jax.Array],
    config: ml_collections.ConfigDict,
    axis: Axis,
    users: ExtraKeys | None,
) -> LossTerm:
    pooled, other_pooled = (pooled_states(stream, batch, config) for stream in (anchor, other))
    return user_grained(
        pooled,
        other_pooled,
        batch["row_mask"],
        temperature=config.loss.user_temperature,
        negatives=config.loss.negatives,
        axis=axis,
        extra=users,
    )
