"""The pure step that advances the train state."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from tssr_jax.content.trained import TrainedEncoder, parameters_name
from tssr_jax.losses.base import LossTerm
from tssr_jax.losses.drawn_items import DrawnItems, draw
from tssr_jax.losses.objective import (
    MEMORY,
    Competitors,
    LossConfig,
    loss_terms,
    term_weights,
    total_loss,
)
from tssr_jax.models.apply import encode, heads
from tssr_jax.models.content import Content
from tssr_jax.models.recall import GATE
from tssr_jax.models.side import side_of
from tssr_jax.models.tssr import TSSR
from tssr_jax.parallel import collectives, sharding
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.collectives import Axis
from tssr_jax.training.gate import PERIOD, gate_gradients
from tssr_jax.training.sparse_rows import HEAD, ITEM_TABLE, SparseRows, sparse_rows
from tssr_jax.training.state import TOTAL, TrainState

TrainStep = Callable[[TrainState, Mapping[str, Any], Content], TrainState]


def updated_average(state: TrainState, params: Any, decay: float) -> Any | None:
    """The moving average after a step to `params`; it decays faster in the first steps."""
    if state.average is None:
        return None
    young = (1.0 + state.step) / (10.0 + state.step)
    return optax.incremental_update(params, state.average, 1.0 - jnp.minimum(decay, young))


def make_train_step(
    model: TSSR,
    optimizer: optax.GradientTransformation,
    config: ml_collections.ConfigDict,
    encoders: Mapping[str, TrainedEncoder] | None = None,
) -> TrainStep:
    """Returns the step of one device, the pure function `(state, batch, content) -> state`.

    Each device gets its rows of the global batch; the loss and the new state are global, and equal
    on all devices. Dropout is a function of (config.seed, step, row); all other random draws are
    functions of (config.seed, step).

    Args:
      model: tells how batch and catalogue lie on the devices.
      optimizer: whose state the train state holds.
      config: sections `loss` and `corrections`, and the seed.
      encoders: content encoders that are trained, by modality; they read `content.inputs`, and
        `batch["distinct"]` has their share of the batch's items.
    """
    gradients = _make_gradients(model, config, encoders or {})
    lazy, sampled = config.optimizer.lazy_rows, config.loss.next_item == "sampled"
    tables = (ITEM_TABLE, HEAD) if sampled else (ITEM_TABLE,)

    def train_step(state: TrainState, batch: Mapping[str, Any], content: Content) -> TrainState:
        draws = _draw(config, state.step, content, model.classes)
        params, opt_state = own = state.params, state.opt_state
        rows = None
        if lazy:
            more = draws.items and draws.items.classes
            rows = sparse_rows(batch, more, tables, model.classes, model.rows_axis)
            params, opt_state = rows.take(own)
        grads, terms = gradients(params, batch, content, draws, rows)
        if model.memory:
            grads[GATE], terms[MEMORY] = _gate_gradients(
                model, state, batch["gate"], content, config.evaluate.keep_seen
            )
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
        if rows is not None:
            params, opt_state = rows.put(own, (params, opt_state))
        return TrainState(
            step=state.step + 1,
            params=params,
            average=updated_average(state, params, config.optimizer.ema_decay),
            opt_state=opt_state,
            loss_sums=jax.tree.map(jnp.add, state.loss_sums, terms),
            first_nonfinite=_first_nonfinite(state, terms),
        )

    return train_step


def _gate_gradients(
    model: TSSR,
    state: TrainState,
    rows: Mapping[str, jax.Array],
    content: Content,
    keep_seen: bool,
) -> tuple[Any, LossTerm]:
    """Gradient and loss of the gate at every `PERIOD`-th step, zeros at the others."""
    gate = state.params[GATE]

    def taken() -> tuple[Any, LossTerm]:
        return gate_gradients(model, gate, state.eval_params, rows, content, keep_seen)

    def left_out() -> tuple[Any, LossTerm]:
        return jax.tree.map(jnp.zeros_like, gate), LossTerm(jnp.zeros(()), jnp.zeros(()))

    return jax.lax.cond(state.step % PERIOD == 0, taken, left_out)


class _Draws(NamedTuple):
    """Random draws of a step, equal on all devices.

    Attributes:
      key: random key of dropout.
      known: bool [shard_classes], see `_some_ids`; None if all items are known.
      items: drawn competitors of next items, see `losses.sampled`; None without them.
    """

    key: jax.Array
    known: jax.Array | None
    items: DrawnItems | None


def _draw(
    config: ml_collections.ConfigDict, step: jax.Array, content: Content, catalogue: Catalogue
) -> _Draws:
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    known, items = content.known, None
    if known is not None:
        known = _some_ids(known, config.model.id_dropout, key, catalogue)
    if content.chances is not None:
        items = draw(content.chances, config.loss.num_negatives, jax.random.fold_in(key, 2))
    return _Draws(key, known, items)


def _make_gradients(
    model: TSSR, config: ml_collections.ConfigDict, encoders: Mapping[str, TrainedEncoder]
) -> Callable[..., tuple[Any, dict[str, LossTerm]]]:
    """Returns `(params, batch, content, draws, rows) -> gradient, terms`.

    Both are for the global batch. With `rows` the parameters are reduced to these rows.
    """
    loss, axis = LossConfig.from_config(config), model.rows_axis
    weights = term_weights(model.streams, model.mixing, loss)

    def gradients(
        params: Any,
        batch: Mapping[str, Any],
        content: Content,
        draws: _Draws,
        rows: SparseRows | None,
    ) -> tuple[Any, dict[str, LossTerm]]:
        competing, drawn = content.known, draws.items
        content = dataclasses.replace(content, known=draws.known)
        encoder_model = head_model = model
        if rows is not None:
            batch, content = rows.places_in(batch), rows.rows_of_content(content)
            encoder_model = model.clone(catalogue=rows.catalogue)
            if drawn is not None:
                head_model = encoder_model
                competing = None if competing is None else rows.rows_of(competing)
                drawn = drawn._replace(classes=rows.places(drawn.classes))

        def loss_fn(params: Any) -> tuple[jax.Array, dict[str, LossTerm]]:
            read = _encode_content(encoders, params, content, batch, axis)
            sequence, packed = batch["item_sequence"], batch.get("packed")
            outputs = encode(
                encoder_model,
                params,
                sequence,
                read,
                packed,
                side=side_of(batch),
                dropout_key=draws.key,
            )
            terms = loss_terms(
                outputs,
                heads(head_model, params, read),
                batch,
                loss,
                catalogue=head_model.classes,
                rows_axis=axis,
                compute_dtype=model.compute_dtype,
                competitors=Competitors(competing, drawn),
            )
            return total_loss(terms, weights, axis), terms

        (share, shares), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        total, terms = collectives.psum((share, shares), axis)
        grads = sharding.sum_gradients(grads, model.classes, axis)
        return grads, {**terms, TOTAL: LossTerm(total, jnp.ones(()))}

    return gradients


def _encode_content(
    encoders: Mapping[str, TrainedEncoder],
    params: Any,
    content: Content,
    batch: Mapping[str, Any],
    axis: Axis,
) -> Content:
    """The content plus the trainable encoders' features of the batch's items."""
    features = dict(content.features)
    for modality, encoder in encoders.items():
        own, part = params[parameters_name(modality)], batch["distinct"][modality]
        features[modality] = encoder.distinct_features(own, content.inputs[modality], part, axis)
    return dataclasses.replace(content, features=features)


def _some_ids(known: jax.Array, rate: float, key: jax.Array, catalogue: Catalogue) -> jax.Array:
    """Known classes except a share that this step treats as unknown (DropoutNet, NIPS 2017)."""
    if not rate:
        return known
    key = jax.random.fold_in(key, 1)
    kept = jax.random.uniform(key, (catalogue.padded_classes,)) >= rate
    return known & kept[catalogue.classes()]


def _first_nonfinite(state: TrainState, terms: Mapping[str, LossTerm]) -> dict[str, jax.Array]:
    now = state.step + 1
    return {
        name: jnp.where(
            jnp.isfinite(term.sum),
            state.first_nonfinite[name],
            jnp.minimum(state.first_nonfinite[name], now),
        )
        for name, term in terms.items()
    }
