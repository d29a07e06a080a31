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
from tssr_jax.models.tssr import reads_content
from tssr_jax.ranking import initial_params, params_layout
from tssr_jax.train_state import TrainState, create_train_state, with_encoders

# Fields under which parameters mean something else, without another shape: of all models, of those
# with two streams, and of those that read texts.
_NOT_IN_SHAPES = ("model.streams", "model.num_heads", "model.norm", "model.score_temperature")
_NOT_IN_SHAPES_OF_TWO = ("model.mixing", "model.id_reads_content", "model.num_unimodal_layers")
_NOT_IN_SHAPES_OF_TEXTS = (
    "content.text.encoder",
    "content.text.pooling",
    "content.text.whitening",
)


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
    here, there = (flatten_dict(c.to_dict(), sep=".") for c in (config, other_run.config))
    for field in _not_in_shapes(config):
        if here[field] != there[field]:
            raise UserError(
                f"--config.train.init_from={workdir}: that run has {field}={there[field]}, this "
                f"one {here[field]}. Train it with the same sections model and content."
            )
    found = {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(others)}

    def own(path: Any, x: jax.Array) -> jax.Array:
        if placement.class_dimension(placement.path_names(path)) is not None:
            return x
        other = found.get(jax.tree_util.keystr(path))
        if other is None or other.shape != x.shape:
            there = "lacks" if other is None else f"has {list(other.shape)} for"
            raise UserError(
                f"--config.train.init_from={workdir}: that run {there} the parameter "
                f"{'/'.join(placement.path_names(path))}, which here is {list(x.shape)}. Train it "
                "with the same sections model and content."
            )
        return jax.device_put(other, x.sharding)

    params = jax.tree_util.tree_map_with_path(own, state.params)
    average = state.average and jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, average=average)


def _not_in_shapes(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    streams = config.model.streams
    reads_texts = reads_content(streams) and "text" in config.content.modalities
    return (
        _NOT_IN_SHAPES
        + (_NOT_IN_SHAPES_OF_TWO if len(streams) == 2 else ())
        + (_NOT_IN_SHAPES_OF_TEXTS if reads_texts else ())
    )
