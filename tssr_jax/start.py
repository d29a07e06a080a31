"""The state before the first step: made anew, or from another run's parameters."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from etils import epath
from flax.traverse_util import flatten_dict

from tssr_jax import placement
from tssr_jax.errors import UserError
from tssr_jax.evaluate import restore_best
from tssr_jax.experiment import Experiment
from tssr_jax.ranking import initial_params, params_layout
from tssr_jax.run_config import PLACES
from tssr_jax.train_state import TrainState, create_train_state, with_encoders

_TRAIN_ALIKE = "Train it with the same sections model and content."


def expected_state(
    experiment: Experiment, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Any]:
    """What a state of this run looks like, and how it lies on the devices.

    Returns:
      A state whose arrays are `jax.ShapeDtypeStruct` with their shardings, and its layout.
    """

    def start() -> TrainState:
        return create_train_state(initial_params(experiment), optimizer, experiment.config)

    shapes = jax.eval_shape(start)
    layout = placement.layout(shapes)
    return jax.tree.map(_described, shapes, experiment.devices.shardings(layout)), layout


def _described(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def initial_state(
    experiment: Experiment, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Any]:
    """The state before the first step, on the devices, and how it lies there."""
    devices = experiment.devices

    def start(params: Any) -> TrainState:
        return create_train_state(params, optimizer, experiment.config)

    # One after the other: what drawing a large table needs is free before there are moments.
    params = devices.build(lambda: initial_params(experiment), params_layout(experiment))
    layout = placement.layout(jax.eval_shape(start, params))
    state = devices.build(start, layout, params)
    return with_encoders(state, devices.place(experiment.pretrained)), layout


def started_from(
    state: TrainState, config: ml_collections.ConfigDict, workdir: epath.Path
) -> TrainState:
    """The state with another run's best parameters, but for those of its items.

    Args:
      state: of the run that starts.
      config: its configuration.
      workdir: of the other run.

    Raises:
      UserError: if `workdir` holds no run, or that is of another model.
    """
    other_run, others, _ = restore_best(workdir.expanduser())
    require_same_sections(config, other_run.config, workdir)
    found = {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(others)}

    def own(path: Any, x: jax.Array) -> jax.Array:
        if _is_of_items(path):
            return x
        other = found.get(jax.tree_util.keystr(path))
        if other is None or other.shape != x.shape:
            there = "lacks" if other is None else f"has {list(other.shape)} for"
            raise UserError(
                f"--config.train.init_from={workdir}: that run {there} the parameter "
                f"{_name(path)}, which here is {list(x.shape)}. {_TRAIN_ALIKE}"
            )
        return jax.device_put(other, x.sharding)

    params = jax.tree_util.tree_map_with_path(own, state.params)
    read = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)}
    for path, _ in jax.tree.leaves_with_path(others):
        # What is left out would have changed what the rest means.
        if jax.tree_util.keystr(path) not in read and not _is_of_items(path):
            raise UserError(
                f"--config.train.init_from={workdir}: that run has the parameter {_name(path)}, "
                f"which this one lacks. {_TRAIN_ALIKE}"
            )
    average = state.average and jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, average=average)


def require_same_sections(
    config: ml_collections.ConfigDict, other: ml_collections.ConfigDict, workdir: epath.Path
) -> None:
    """Raises UserError if the sections `model` and `content` of two runs differ.

    Where files lie may differ; whether an encoder's own weights are the same is not known here.

    Args:
      config: of the run that starts.
      other: of the run in `workdir`.
      workdir: for the error.
    """
    here, there = (flatten_dict(own.to_dict(), sep=".") for own in (config, other))
    for field in here:
        if field.partition(".")[0] not in ("model", "content") or field in PLACES:
            continue
        if here[field] != there[field]:
            raise UserError(
                f"--config.train.init_from={workdir}: that run has {field}={there[field]}, this "
                f"one {here[field]}. {_TRAIN_ALIKE}"
            )


def _is_of_items(path: Any) -> bool:
    return placement.class_dimension(placement.path_names(path)) is not None


def _name(path: Any) -> str:
    return "/".join(placement.path_names(path))
