"""What a training goes on from: its own newest checkpoint, another run, or nothing."""

from typing import Any, NamedTuple

import optax
from etils import epath

from tssr_jax.checkpoints.checkpointer import Checkpointer, Progress
from tssr_jax.config.saved import load_config
from tssr_jax.evaluation.evaluate import restore_best
from tssr_jax.run import Run
from tssr_jax.training.optimizer import optimizer_of
from tssr_jax.training.state import (
    TrainState,
    abstract_state,
    initial_state,
    require_same_sections,
    with_params_of,
)


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


def find_start(run: Run, checkpointer: Checkpointer) -> Start:
    """Looks for the state that a training goes on from.

    In this order:

    1. the newest whole checkpoint of the run's own workdir;
    2. the best parameters of the run in `config.train.init_from`, but for those of its items;
    3. random parameters.

    Raises:
      UserError: if a checkpoint does not fit, or `init_from` names no run of such a model.
    """
    optimizer = optimizer_of(run)
    # Shapes only: where a checkpoint is restored, there is no room for a second state.
    expected, layout = abstract_state(run, optimizer)
    restored = checkpointer.restore_newest(*expected.for_checkpoint())
    if restored is not None:
        params, rest, progress = restored
        return Start(TrainState.from_checkpoint(params, rest), progress, optimizer, layout)
    state, _ = initial_state(run, optimizer)
    if run.config.train.init_from:
        other = epath.Path(run.config.train.init_from).expanduser()
        require_same_sections(run.config, load_config(other), other)
        state = with_params_of(state, restore_best(other, encoders=True)[1], other)
    return Start(state, Progress(), optimizer, layout)
