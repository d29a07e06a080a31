"""All loss terms of a training step, and their weighted sum (SPEC, model step 7)."""

from collections.abc import Mapping
from typing import Any

import jax
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
    id_states, content_states = outputs.id_encoded, outputs.content_encoded
    if set(USER_TERMS) <= names.keys():
        pooled_content, pooled_id = (
            pool(states, sequence, valid_positions=corrections.pool_valid_positions)
            for states in (content_states, id_states)
        )
        temperature = config.loss.user_temperature
        for name, anchor, other in zip(
            USER_TERMS, (pooled_content, pooled_id), (pooled_id, pooled_content), strict=True
        ):
            terms[name] = user_grained(anchor, other, row_mask, temperature=temperature)
    if set(ITEM_TERMS) <= names.keys():
        for name, states, embeddings in zip(
            ITEM_TERMS,
            (content_states, id_states),
            (outputs.id_input_embedding, outputs.content_input_embedding),
            strict=True,
        ):
            terms[name] = item_grained(
                states,
                embeddings,
                sequence,
                valid_positions_only=corrections.valid_positions_only,
                mask_false_negatives=corrections.mask_false_negatives,
            )
    return terms


def total_loss(terms: Mapping[str, LossTerm], weights: Mapping[str, float]) -> jax.Array:
    """Weighted sum of the terms' means, a scalar."""
    return sum(weight * terms[name].mean() for name, weight in weights.items())
