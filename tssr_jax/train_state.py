"""The state of training and the pure step that advances it."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import struct

from tssr_jax import collectives, placement
from tssr_jax.catalogue import Catalogue
from tssr_jax.collectives import Axis
from tssr_jax.losses.hard_negatives import UserQueue, draw_near_items
from tssr_jax.losses.negatives import CHANCES, Negatives, draw
from tssr_jax.losses.term import LossTerm
from tssr_jax.losses.total import (
    Competitors,
    loss_terms,
    pooled_states,
    term_weights,
    total_loss,
)
from tssr_jax.models.content.trained import TrainedEncoder, parameters_name
from tssr_jax.models.pure import encode
from tssr_jax.models.tssr import KNOWN, TSSR
from tssr_jax.touched_rows import HEAD, ITEM_TABLE, TouchedRows, touched_rows

NEVER = jnp.iinfo(jnp.int32).max
TOTAL = "total"


@struct.dataclass
class TrainState:
    """Everything that a step reads and writes.

    Attributes:
      step: int32 scalar, steps done.
      params: the model's parameters.
      average: exponential moving average of `params`, None without one.
      opt_state: the optimiser's state.
      users: of past steps, further negatives; None without (`config.loss.queue_size`).
      loss_sums: each term, and their total, summed since the last log line: checkpoints hold it,
        so that a resumed run logs the same means.
      first_nonfinite: int32, for each term the first step at which it was NaN or infinite, or
        NEVER. Found on the device, so that no step waits for the host.
    """

    step: jax.Array
    params: Any
    average: Any | None
    opt_state: Any
    users: UserQueue | None
    loss_sums: dict[str, LossTerm]
    first_nonfinite: dict[str, jax.Array]

    @property
    def eval_params(self) -> Any:
        """The parameters that are validated, kept as the best ones, and ranked with."""
        return self.params if self.average is None else self.average


TrainStep = Callable[[TrainState, Mapping[str, Any], Any], TrainState]


def init_params(model: TSSR, widths: Mapping[str, int], seed: int) -> Any:
    """Initial parameters, on any number of devices the same function of the model and the seed.

    Args:
      model: the module of one device.
      widths: of the content features, by modality; {} without a content stream.
      seed: any integer.

    Returns:
      The parameters for all devices: those with one row per class have `padded_classes`.
    """
    return _init_params(model, tuple(widths.items()), jax.random.key(seed))


# One function, so that what asks for shapes only traces a model once.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _init_params(model: TSSR, widths: tuple[tuple[str, int], ...], key: jax.Array) -> Any:
    whole = model.clone(catalogue=Catalogue(model.catalogue.num_items), rows_axis=None)
    sequence = jnp.zeros((1, model.max_length), jnp.int32)
    # No parameter depends on their values: the compiled program makes no such table.
    rows = whole.catalogue.num_classes
    features = {name: jnp.zeros((rows, width)) for name, width in widths}
    params = whole.init(key, sequence, features)["params"]
    return placement.pad_classes(params, model.catalogue)


def create_train_state(
    params: Any, optimizer: optax.GradientTransformation, config: ml_collections.ConfigDict
) -> TrainState:
    """The state before the first step."""
    names = (*term_weights(config), TOTAL)
    size = config.loss.queue_size
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        average=jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None,
        opt_state=jax.jit(optimizer.init)(params),
        users=UserQueue.empty(size, config.model.d_model) if size else None,
        loss_sums=zero_sums(names),
        first_nonfinite={name: jnp.full((), NEVER, jnp.int32) for name in names},
    )


def with_encoders(state: TrainState, encoders: Mapping[str, Any]) -> TrainState:
    """The state with encoders' parameters (by their names) for zeros, in the average too."""
    average = state.average
    if average is not None:
        average = {**average, **jax.tree.map(jnp.copy, dict(encoders))}
    params = {**state.params, **encoders}
    return dataclasses.replace(state, params=params, average=average)


def all_finite(params: Any) -> jax.Array:
    """Whether no parameter is NaN or infinite, a bool scalar."""
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]).all()


def zero_sums(names: Iterable[str]) -> dict[str, LossTerm]:
    """Fresh accumulators of the terms."""
    return {name: LossTerm(jnp.zeros(()), jnp.zeros(())) for name in names}


def updated_average(state: TrainState, params: Any, decay: float) -> Any | None:
    """The moving average after a step to `params`; young averages forget faster."""
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

    Each device gets its rows of the global batch; the loss and the new state are those of the
    whole, the same on all devices. Dropout is a function of (config.seed, step, row); what else is
    drawn, of (config.seed, step).

    Args:
      model: tells how batch and catalogue lie on the devices.
      optimizer: whose state the train state holds.
      config: sections `loss` and `corrections`, and the seed.
      encoders: content encoders that are trained, by modality. For these `content[modality]` is
        what they read, and `batch["distinct"][modality]` their share of the batch's items;
        otherwise it is a table of features.
    """
    gradients = _make_gradients(model, config, encoders or {})
    lazy, sampled = config.optimizer.lazy_rows, config.loss.next_item == "sampled"
    tables = (ITEM_TABLE, HEAD) if sampled else (ITEM_TABLE,)

    def train_step(state: TrainState, batch: Mapping[str, Any], content: Any) -> TrainState:
        draws = _draw(config, state.step, content, model.catalogue)
        params, opt_state = own = state.params, state.opt_state
        rows = None
        if lazy:
            more = draws.negatives and draws.negatives.classes
            rows = touched_rows(batch, more, tables, model.catalogue, model.rows_axis)
            params, opt_state = rows.take(own)
        grads, terms = gradients(params, batch, content, draws, rows, state.users)
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
            users=_with_batch(state, model, batch, content, config),
            loss_sums=jax.tree.map(jnp.add, state.loss_sums, terms),
            first_nonfinite=_first_nonfinite(state, terms),
        )

    return train_step


class _Draws(NamedTuple):
    """What a step draws, the same on all devices.

    Attributes:
      key: of dropout.
      known: bool [shard_classes], see `_some_ids`; None where all items are known.
      negatives: see `losses.sampled`; None without.
    """

    key: jax.Array
    known: jax.Array | None
    negatives: Negatives | None


def _draw(
    config: ml_collections.ConfigDict,
    step: jax.Array,
    content: Mapping[str, Any],
    catalogue: Catalogue,
) -> _Draws:
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    known, negatives = content.get(KNOWN), None
    if known is not None:
        known = _some_ids(known, config.model.id_dropout, key, catalogue)
    if CHANCES in content:
        own_key = jax.random.fold_in(key, 2)
        negatives = draw(content[CHANCES], config.loss.num_negatives, own_key)
    return _Draws(key, known, negatives)


def _make_gradients(
    model: TSSR, config: ml_collections.ConfigDict, encoders: Mapping[str, TrainedEncoder]
) -> Callable[..., tuple[Any, dict[str, LossTerm]]]:
    """Returns `(params, batch, content, draws, rows, users) -> gradient, terms`.

    Both are those of the global batch. With `rows` the parameters are cut down to these.
    """
    weights, axis = term_weights(config), model.rows_axis

    def gradients(  # noqa: PLR0917
        params: Any,
        batch: Mapping[str, Any],
        content: Mapping[str, Any],
        draws: _Draws,
        rows: TouchedRows | None,
        users: UserQueue | None,
    ) -> tuple[Any, dict[str, LossTerm]]:
        known = content.get(KNOWN)
        encoder_model = head_model = model
        negatives = draws.negatives
        content = dict(content) if draws.known is None else {**content, KNOWN: draws.known}
        if rows is not None:
            batch = rows.places_in(batch)
            content = {n: x if n == CHANCES else rows.rows_of(x) for n, x in content.items()}
            encoder_model = model.clone(catalogue=rows.catalogue)
            if negatives is not None:
                head_model = encoder_model
                known = known if known is None else rows.rows_of(known)
                negatives = negatives._replace(classes=rows.places(negatives.classes))

        competitors = Competitors(
            known=known,
            negatives=negatives,
            hard_items=_hard_items(config, params, content, batch, draws.key, axis),
            users=users,
        )

        def loss_fn(params: Any) -> tuple[jax.Array, dict[str, LossTerm]]:
            features = _encode_content(encoders, params, content, batch, axis)
            sequence, packed = batch["item_sequence"], batch.get("packed")
            outputs = encode(
                encoder_model, params, sequence, features, packed, dropout_key=draws.key
            )
            terms = loss_terms(
                head_model, params, outputs, batch, config,
                item_features=features, competitors=competitors,
            )  # fmt: skip
            return total_loss(terms, weights, axis), terms

        (share, shares), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        total, terms = collectives.psum((share, shares), axis)
        grads = placement.sum_gradients(grads, model.catalogue, axis)
        return grads, {**terms, TOTAL: LossTerm(total, jnp.ones(()))}

    return gradients


def _hard_items(  # noqa: PLR0917
    config: ml_collections.ConfigDict,
    params: Any,
    content: Mapping[str, Any],
    batch: Mapping[str, Any],
    key: jax.Array,
    axis: Axis,
) -> jax.Array | None:
    """Further negatives of the item-grained terms, as `config.loss.hard_negatives` says."""
    kind = config.loss.hard_negatives
    if kind == "none":
        return None
    vectors = params[ITEM_TABLE]["embedding"]
    if kind == "content":
        vectors = jnp.concatenate([content[name] for name in config.content.modalities], axis=1)
    number, key = config.loss.num_hard_negatives, jax.random.fold_in(key, 4)
    return draw_near_items(vectors, batch["item_sequence"], number, key, axis)


def _with_batch(
    state: TrainState,
    model: TSSR,
    batch: Mapping[str, Any],
    content: Mapping[str, Any],
    config: ml_collections.ConfigDict,
) -> UserQueue | None:
    """The queue of users with those of this step, as the averaged parameters see them."""
    if state.users is None or state.average is None:
        return None
    sequence, packed = batch["item_sequence"], batch.get("packed")
    outputs = encode(model, state.average, sequence, content, packed)
    assert outputs.id is not None
    assert outputs.content is not None
    ids, contents = (pooled_states(own, batch, config) for own in (outputs.id, outputs.content))
    return state.users.extended(ids, contents, batch["row_mask"], model.rows_axis)


def _encode_content(
    encoders: Mapping[str, TrainedEncoder],
    params: Any,
    content: Mapping[str, Any],
    batch: Mapping[str, Any],
    axis: Axis,
) -> dict[str, Any]:
    """Features of all modalities: tables, or of trained encoders those of the batch's items."""
    features = dict(content)
    for modality, encoder in encoders.items():
        name, part = parameters_name(modality), batch["distinct"][modality]
        features[modality] = encoder.distinct_features(params[name], content[modality], part, axis)
    return features


def _some_ids(known: jax.Array, rate: float, key: jax.Array, catalogue: Catalogue) -> jax.Array:
    """Known classes but for a share that this step treats as unknown (DropoutNet, NIPS 2017)."""
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
