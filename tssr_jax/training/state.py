"""The train state: creation, shapes, start from another run, checkpoints."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import struct

from tssr_jax.config.fields import flattened
from tssr_jax.config.saved import PLACES
from tssr_jax.errors import UserError
from tssr_jax.losses.base import LossTerm
from tssr_jax.losses.objective import LossConfig, term_weights
from tssr_jax.parallel import sharding

if TYPE_CHECKING:
    from tssr_jax.run import Run

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
      loss_sums: sums of each term and of their total since the last log line; checkpoints hold
        them, so that a resumed run logs equal means.
      first_nonfinite: int32, for each term the first step at which it was NaN or infinite, or
        NEVER. Found on the device, so that no step waits for the host.
    """

    step: jax.Array
    params: Any
    average: Any | None
    opt_state: Any
    loss_sums: dict[str, LossTerm]
    first_nonfinite: dict[str, jax.Array]

    def for_checkpoint(self) -> tuple[Any, dict[str, Any]]:
        """The parameters for ranking, and the rest of the state; see `from_checkpoint`."""
        fields = {field.name for field in dataclasses.fields(self)} - {"average"}
        if self.average is None:
            fields -= {"params"}
        return self.eval_params, {name: getattr(self, name) for name in sorted(fields)}

    @classmethod
    def from_checkpoint(cls, ranking: Any, rest: Mapping[str, Any]) -> "TrainState":
        """Restores the state from the results of its `for_checkpoint`."""
        average = ranking if "params" in rest else None
        return cls(average=average, **({"params": ranking} | dict(rest)))

    @property
    def eval_params(self) -> Any:
        """The parameters for validation, for the best checkpoint, and for ranking."""
        return self.params if self.average is None else self.average


def create_train_state(
    params: Any, optimizer: optax.GradientTransformation, config: ml_collections.ConfigDict
) -> TrainState:
    """The state before the first step."""
    loss = LossConfig.from_config(config)
    model = config.model
    names = (*term_weights(model.streams, model.mixing, loss, model.memory), TOTAL)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        average=jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None,
        opt_state=jax.jit(optimizer.init)(params),
        loss_sums=zero_sums(names),
        first_nonfinite={name: jnp.full((), NEVER, jnp.int32) for name in names},
    )


def _with_encoders(state: TrainState, encoders: Mapping[str, Any]) -> TrainState:
    """The state with pretrained encoders (by name) in place of zeros, also in the average."""
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


def abstract_state(run: "Run", optimizer: optax.GradientTransformation) -> tuple[TrainState, Any]:
    """Shapes of this run's state, and its layout on the devices.

    Returns:
      A state whose arrays are `jax.ShapeDtypeStruct` with their shardings, and its layout.
    """

    def start() -> TrainState:
        return create_train_state(run.initial_params(), optimizer, run.config)

    shapes = jax.eval_shape(start)
    layout = sharding.layout(shapes)
    return sharding.placed_shapes(shapes, run.devices.shardings(layout)), layout


def initial_state(run: "Run", optimizer: optax.GradientTransformation) -> tuple[TrainState, Any]:
    """The state before the first step, on the devices, and how it lies there."""

    def start(params: Any) -> TrainState:
        return create_train_state(params, optimizer, run.config)

    # In two steps: the memory for drawing a large table is freed before moments are allocated.
    params = run.devices.build(run.initial_params, run.params_layout)
    layout = sharding.layout(jax.eval_shape(start, params))
    state = run.devices.build(start, layout, params)
    return _with_encoders(state, run.devices.place(run.pretrained)), layout


def with_params(state: TrainState, params: Any) -> TrainState:
    """The state of a run that starts, with other parameters."""
    average = state.average and jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, average=average)


def params_of(state: TrainState, others: Any, field: str, *, items: bool) -> Any:
    """Another run's parameters, placed like those of a state.

    Args:
      state: of the run that starts.
      others: the other run's best parameters.
      field: which names that run, for the error.
      items: also those of items; else the state's own.

    Raises:
      UserError: if a parameter has another shape.
    """

    def own(path: Any, x: jax.Array, other: jax.Array) -> jax.Array:
        names = sharding.path_names(path)
        if sharding.class_dimension(names) is not None and not items:
            return x
        if other.shape != x.shape:
            raise UserError(
                f"{field}: that run has {list(other.shape)} for the "
                f"parameter {'/'.join(names)}, which here is {list(x.shape)}. Both need content "
                "encoders of the same width."
            )
        return jax.device_put(other, x.sharding)

    return jax.tree_util.tree_map_with_path(own, state.params, others)


def require_same_sections(
    config: ml_collections.ConfigDict, other: ml_collections.ConfigDict, named: str
) -> None:
    """Raises UserError if the sections `model` and `content` of two runs differ.

    Paths of files may differ; encoders' weights are not compared.

    Args:
      config: configuration of the run that starts.
      other: configuration of the other run.
      named: the field that names that run, for the error.
    """
    here, there = (flattened(own) for own in (config, other))
    for field in here:
        if field.partition(".")[0] not in ("model", "content") or field in PLACES:
            continue
        if here[field] != there[field]:
            raise UserError(
                f"{named}: that run has {field}={there[field]}, this "
                f"one {here[field]}. Train it with the same "
                "sections model and content."
            )
