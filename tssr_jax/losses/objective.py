"""All loss terms of a training step, and their weighted sum (docs/reference/method.md, step 7)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from tssr_jax.losses.base import LossTerm
from tssr_jax.losses.contrastive import item_contrast, pool, user_contrast
from tssr_jax.losses.drawn_items import DrawnItems, cumulative_chances, draw
from tssr_jax.losses.next_item import next_item_loss
from tssr_jax.losses.sampled import sampled_next_item_loss
from tssr_jax.models.apply import encode, heads
from tssr_jax.models.content import Features, as_content
from tssr_jax.models.head import HeadWeights
from tssr_jax.models.side import side_of
from tssr_jax.models.tssr import TSSR, StreamStates, TSSROutputs
from tssr_jax.parallel import collectives
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.collectives import Axis

PREDICTION = "prediction"
# The loss of the gate of a model with memories, see `training.gate`.
MEMORY = "memory"
# The next-item loss of each expert, where `model.mixing` is "experts"; the gate's is PREDICTION.
EXPERT_TERMS = {"id": "prediction_id", "content": "prediction_content", "joint": PREDICTION}
USER_TERMS = ("user_text2id", "user_id2text")
ITEM_TERMS = ("item_text2id", "item_id2text")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What the loss is; defaults and comments are those of `loss` and `corrections` in the config.

        LossConfig(lambda_user=0.1, lambda_item=0.1)

    Attributes:
      lambda_user: weight of the two user-grained terms; 0 switches them off.
      lambda_item: weight of the two item-grained terms; 0 switches them off.
      user_temperature: divides the user-grained cosines.
      negatives: how negatives of other devices are reached, "all_gather" or "ring".
      next_item: a label competes with the "full" catalogue, or with "sampled" items.
      num_negatives: items that a step draws, with "sampled".
      valid_positions_only: a position counts only where its own input and its target are items.
      pool_valid_positions: a sequence is pooled over its items, not over padding.
      mask_false_negatives: the anchor's own target item in another row is no negative.
      exclude_padding_class: class 0 does not compete in the softmax.
    """

    lambda_user: float = 1.0
    lambda_item: float = 1.0
    user_temperature: float = 0.2
    negatives: str = "all_gather"
    next_item: str = "full"
    num_negatives: int = 1024
    valid_positions_only: bool = True
    pool_valid_positions: bool = True
    mask_false_negatives: bool = True
    exclude_padding_class: bool = True

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "LossConfig":
        """The loss of sections `loss` and `corrections` of a configuration."""
        fields = {**config.loss.to_dict(), **config.corrections.to_dict()}
        return cls(**{field.name: fields[field.name] for field in dataclasses.fields(cls)})


class Competitors(NamedTuple):
    """Competitors beyond the batch and the catalogue.

    Attributes:
      known: bool [shard_classes]; other items do not compete as next items. None: all do.
      drawn: the items that next items compete with, for `next_item="sampled"`.
    """

    known: jax.Array | None = None
    drawn: DrawnItems | None = None


ONLY_THE_BATCH = Competitors()


def tssr_loss(  # noqa: PLR0917
    model: TSSR,
    params: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    features: Features = None,
    config: LossConfig = LossConfig(),
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of one batch on one device, and the mean of each of its terms.

        loss, metrics = tssr_loss(model, params, batch, features, LossConfig(), key)
        grads = jax.grad(lambda p: tssr_loss(model, p, batch, features)[0])(params)

    Args:
      model: the module, whose catalogue is whole.
      params: its parameters.
      batch: `item_sequence` int [batch, length], oldest first, left padded with 0; `labels` int
        [batch, length], the next item at each position; where rows only fill the batch,
        `row_mask` bool [batch]; of a model that reads them, `events` and `profiles` int [batch,
        length]; and, where labels weigh differently, `label_weights` [batch, length].
      features: of the items, as `encode` takes them.
      config: which terms, and their weights.
      key: random key of dropout and of drawn items; None switches dropout off.

    Returns:
      The scalar loss and {"prediction": ..., "user_text2id": ..., ...}, each a scalar.

    Raises:
      ValueError: if items are to be drawn without a key.
    """
    content = as_content(features, model.modalities)
    if "row_mask" not in batch:
        batch = {**batch, "row_mask": jnp.ones(batch["item_sequence"].shape[0], bool)}
    drawn = None
    if config.next_item == "sampled":
        if key is None:
            raise ValueError("next_item='sampled' draws items: it needs a key")
        chances = content.chances
        if chances is None:
            items = np.arange(model.classes.num_classes) > 0  # padding is never drawn
            chances = jnp.asarray(cumulative_chances(items))
        drawn = draw(chances, config.num_negatives, jax.random.fold_in(key, 2))
    sequence, side = batch["item_sequence"], side_of(batch)
    outputs = encode(model, params, sequence, content, side=side, dropout_key=key)
    terms = loss_terms(
        outputs,
        heads(model, params, content),
        batch,
        config,
        catalogue=model.classes,
        compute_dtype=model.compute_dtype,
        competitors=Competitors(known=content.known, drawn=drawn),
    )
    weights = term_weights(model.streams, model.mixing, config)
    return total_loss(terms, weights), {name: term.mean() for name, term in terms.items()}


def term_weights(
    streams: Sequence[str], mixing: str, config: LossConfig, memory: Sequence[str] = ()
) -> dict[str, float]:
    """The factor of each term of the total; terms that are switched off are left out."""
    weights = {PREDICTION: 1.0, MEMORY: float(len(memory) > 0)}
    if len(streams) == 2:
        if mixing == "experts":
            weights |= dict.fromkeys(EXPERT_TERMS.values(), 1.0)
        weights |= dict.fromkeys(USER_TERMS, config.lambda_user)
        weights |= dict.fromkeys(ITEM_TERMS, config.lambda_item)
    return {name: weight for name, weight in weights.items() if weight != 0.0}


def loss_terms(
    outputs: TSSROutputs,
    heads: Mapping[str, HeadWeights],
    batch: Mapping[str, jax.Array],
    config: LossConfig,
    *,
    catalogue: Catalogue,
    rows_axis: Axis = None,
    compute_dtype: str = "float32",
    competitors: Competitors = ONLY_THE_BATCH,
) -> dict[str, LossTerm]:
    """This device's share of the terms that `term_weights` lists.

    Args:
      outputs: the model's states.
      heads: head weights of each prediction, see `models.apply.heads`.
      batch: `item_sequence` and `labels` int [batch, length], `row_mask` bool [batch]; and, where
        labels weigh differently, `label_weights` [batch, length], 0 where nothing is predicted.
      config: which terms, and of what kind.
      catalogue: how the classes of `heads` lie on the devices.
      rows_axis: the device axis that the batch is cut along; None on one device.
      compute_dtype: of the inputs of products with `heads`.
      competitors: competitors beyond the batch and the catalogue.
    """
    counted = batch["labels"] > 0
    if config.valid_positions_only:
        counted = counted & (batch["item_sequence"] > 0)
    importance = batch.get("label_weights")
    if importance is not None:
        counted = counted & (importance > 0)
    terms = {}
    for name, states in (outputs.experts or {"joint": outputs.fused}).items():
        weights = heads[name]
        if competitors.known is not None:
            bias = jnp.where(competitors.known, weights.bias, -jnp.inf)
            weights = weights._replace(bias=bias)
        inputs = states, weights, batch["labels"], counted
        if config.next_item == "sampled":
            assert competitors.drawn is not None
            terms[EXPERT_TERMS[name]] = sampled_next_item_loss(
                *inputs,
                competitors.drawn,
                importance=importance,
                catalogue=catalogue,
                compute_dtype=compute_dtype,
            )
        else:
            terms[EXPERT_TERMS[name]] = next_item_loss(
                *inputs,
                importance=importance,
                exclude_padding_class=config.exclude_padding_class,
                catalogue=catalogue,
                rows_axis=rows_axis,
                compute_dtype=compute_dtype,
            )
    if outputs.id is None or outputs.content is None:
        return terms
    return terms | _contrasts(outputs.id, outputs.content, batch, config, rows_axis)


def _contrasts(
    by_id: StreamStates,
    by_content: StreamStates,
    batch: Mapping[str, jax.Array],
    config: LossConfig,
    axis: Axis,
) -> dict[str, LossTerm]:
    """The user- and item-grained terms that are not switched off."""
    terms: dict[str, LossTerm] = {}
    # Directions in the order of the terms: the anchors' stream, and the targets' stream.
    directions = ((by_content, by_id), (by_id, by_content))
    if config.lambda_user:
        for name, (anchor, other) in zip(USER_TERMS, directions, strict=True):
            terms[name] = user_contrast(
                pooled_states(anchor, batch, config),
                pooled_states(other, batch, config),
                batch["row_mask"],
                temperature=config.user_temperature,
                negatives=config.negatives,
                axis=axis,
            )
    if config.lambda_item:
        for name, (anchor, other) in zip(ITEM_TERMS, directions, strict=True):
            terms[name] = item_contrast(
                anchor.encoded,
                other.input_embedding,
                batch["item_sequence"],
                valid_positions_only=config.valid_positions_only,
                mask_false_negatives=config.mask_false_negatives,
                negatives=config.negatives,
                axis=axis,
            )
    return terms


def pooled_states(
    stream: StreamStates, batch: Mapping[str, jax.Array], config: LossConfig
) -> jax.Array:
    """A stream's pooled states, for the user-grained terms, [batch, d_model]."""
    sequence, valid = batch["item_sequence"], config.pool_valid_positions
    return pool(stream.encoded, sequence, valid_positions=valid)


def total_loss(
    terms: Mapping[str, LossTerm], weights: Mapping[str, float], axis: Axis = None
) -> jax.Array:
    """Weighted sum of the terms' means, a scalar.

    With an axis, the terms and the result are this device's shares: the sum of the results over the
    devices is the loss of the global batch, and the sum of their gradients is its gradient. (Each
    sum is divided by the global weight, since devices hold different numbers of valid positions.)
    """
    means = [
        weight * LossTerm(terms[name].sum, collectives.psum(terms[name].weight, axis)).mean()
        for name, weight in weights.items()
    ]
    return jnp.stack(means).sum()
