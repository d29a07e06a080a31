"""What a training goes on from: its own newest checkpoint, another run, or nothing."""

from typing import Any, NamedTuple

import ml_collections
import optax
from etils import epath

from tssr_jax.checkpoints.checkpointer import Checkpointer, Progress
from tssr_jax.config.saved import load_config
from tssr_jax.errors import UserError
from tssr_jax.evaluation.evaluate import restore_best
from tssr_jax.run import Run
from tssr_jax.training.optimizer import optimizer_of
from tssr_jax.training.state import (
    TrainState,
    abstract_state,
    initial_state,
    params_of,
    require_same_sections,
    with_params,
)
from tssr_jax.training.warm_start import carried_params, found_by_name


class Start(NamedTuple):
    """The start of a training.

    Attributes:
      state: the train state, on the devices.
      progress: the state of the loop.
      optimizer: the optimiser of the train state.
      layout: layout of the train state on the devices.
    """

    state: TrainState
    progress: Progress
    optimizer: optax.GradientTransformation
    layout: Any


def _require_unread_answers(
    config: ml_collections.ConfigDict, other: ml_collections.ConfigDict, field: str
) -> None:
    """Raises UserError if the other run was trained on what this one is measured by."""
    less = set(config.evaluate.held_out) - set(other.evaluate.held_out)
    if less and config.evaluate.split == "leave_one_out":
        raise UserError(
            f"{field} was trained on its {' and '.join(sorted(less))} answers, too "
            "(`tssr refit`): this run would be measured by what it has learnt. Begin from the run "
            "that it repeats, or split by time (--config.evaluate.split=global_time)."
        )


def find_start(run: Run, checkpointer: Checkpointer) -> Start:
    """Looks for the state that a training goes on from.

    In this order:

    1. the newest whole checkpoint of the run's own workdir;
    2. the best parameters of the run in `config.train.warm_start`, see `carried_params`;
    3. the best parameters of the run in `config.train.init_from`, but for those of its items;
    4. random parameters.

    Raises:
      UserError: if a checkpoint does not fit, or a field names no run of such a model.
    """
    optimizer = optimizer_of(run)
    # Shapes only: where a checkpoint is restored, there is no room for a second state.
    expected, layout = abstract_state(run, optimizer)
    restored = checkpointer.restore_newest(*expected.for_checkpoint())
    if restored is not None:
        params, rest, progress = restored
        return Start(TrainState.from_checkpoint(params, rest), progress, optimizer, layout)
    state, _ = initial_state(run, optimizer)
    for name in ("warm_start", "init_from"):
        if not run.config.train[name]:
            continue
        other = epath.Path(run.config.train[name]).expanduser()
        field = f"--config.train.{name}={other}"
        require_same_sections(run.config, load_config(other), field)
        _require_unread_answers(run.config, load_config(other), field)
        other_run, others, _ = restore_best(other, encoders=True)
        others = found_by_name(run, other_run, others, field)
        if name == "warm_start":
            others = carried_params(run, other_run, others)
        params = params_of(state, others, field, items=name == "warm_start")
        state = with_params(state, params)
    return Start(state, Progress(), optimizer, layout)
