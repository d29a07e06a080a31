"""All loss terms of a training step, and their weighted sum (SPEC, model step 7)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from tssr_jax.losses.contrastive import item_grained, pool, user_grained
from tssr_jax.losses.next_item import next_item_loss
from tssr_jax.losses.term import LossTerm
from tssr_jax.models.tssr import TSSROutputs

PREDICTION = "prediction"
USER_TERMS = ("user_text2id", "user_id2text")
ITEM_TERMS = ("item_text2id", "item_id2text")


def term_weights(config: ml_collections.ConfigDict) -> dict[str, float]:
    """The factor of each term of the total; terms that are switched off are left out."""
    weights = {PREDICTION: 1.0}
    if len(config.model.streams) == 2:
        weights |= dict.fromkeys(USER_TERMS, config.loss.lambda_user)
        weights |= dict.fromkeys(ITEM_TERMS, config.loss.lambda_item)
    return {name: weight for name, weight in weights.items() if weight != 0.0}


def loss_terms(
    outputs: TSSROutputs,
    params: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    config: ml_collections.ConfigDict,
) -> dict[str, LossTerm]:
    """Computes the terms that `term_weights` lists.

    Args:
      outputs: the model's states.
      params: the model's parameters; the head `output` is read here, not applied by the model,
        because the catalogue's scores are tiled.
      batch: `item_sequence` and `labels` int [batch, length], `row_mask` bool [batch].
      config: sections `loss` and `corrections`.
    """
    corrections = config.corrections
    names = term_weights(config)
    sequence, labels, row_mask = batch["item_sequence"], batch["labels"], batch["row_mask"]
    counted = labels > 0
    if corrections.valid_positions_only:
        counted = counted & (sequence > 0)
    terms = {
        PREDICTION: next_item_loss(
            outputs.fused,
            params["output"]["kernel"],
            params["output"]["bias"],
            labels,
            counted,
            exclude_padding_class=corrections.exclude_padding_class,
        )
    }
    if outputs.id is None or outputs.content is None:
        return terms
    # Anchor stream and target stream of each direction, in the order of the names.
    directions = ((outputs.content, outputs.id), (outputs.id, outputs.content))
    if set(USER_TERMS) <= names.keys():
        for name, (anchor, other) in zip(USER_TERMS, directions, strict=True):
            pooled, other_pooled = (
                pool(stream.encoded, sequence, valid_positions=corrections.pool_valid_positions)
                for stream in (anchor, other)
            )
            terms[name] = user_grained(
                pooled, other_pooled, row_mask, temperature=config.loss.user_temperature
            )
    if set(ITEM_TERMS) <= names.keys():
        for name, (anchor, other) in zip(ITEM_TERMS, directions, strict=True):
            terms[name] = item_grained(
                anchor.encoded,
                other.input_embedding,
                sequence,
                valid_positions_only=corrections.valid_positions_only,
                mask_false_negatives=corrections.mask_false_negatives,
            )
    return terms


def total_loss(terms: Mapping[str, LossTerm], weights: Mapping[str, float]) -> jax.Array:
    """Weighted sum of the terms' means, a scalar."""
    means = [weight * terms[name].mean() for name, weight in weights.items()]
    return jnp.stack(means).sum()
