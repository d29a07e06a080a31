"""Losses of a model, as a configuration says, and states in checkpoints."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from tssr_jax.checkpoints.checkpointer import Checkpointer, Progress
from tssr_jax.losses import objective
from tssr_jax.losses.base import LossTerm
from tssr_jax.losses.objective import ONLY_THE_BATCH, Competitors, LossConfig
from tssr_jax.models.apply import heads
from tssr_jax.models.content import Features
from tssr_jax.models.tssr import TSSR, TSSROutputs
from tssr_jax.training.state import TrainState


def loss_terms(  # noqa: PLR0917
    model: TSSR,
    params: Any,
    outputs: TSSROutputs,
    batch: Mapping[str, Any],
    config: ml_collections.ConfigDict,
    features: Features = None,
    competitors: Competitors = ONLY_THE_BATCH,
) -> dict[str, LossTerm]:
    """This device's share of the terms, with what scores them read from the parameters."""
    return objective.loss_terms(
        outputs,
        heads(model, params, features),
        batch,
        LossConfig.from_config(config),
        catalogue=model.classes,
        rows_axis=model.rows_axis,
        compute_dtype=model.compute_dtype,
        competitors=competitors,
    )


def term_weights(config: ml_collections.ConfigDict) -> dict[str, float]:
    loss = LossConfig.from_config(config)
    return objective.term_weights(config.model.streams, config.model.mixing, loss)


def save(checkpointer: Checkpointer, state: TrainState, progress: Progress) -> None:
    checkpointer.save(int(state.step), *state.for_checkpoint(), progress)


def restore_newest(
    checkpointer: Checkpointer, target: TrainState
) -> tuple[TrainState, Progress] | None:
    """The newest state and progress, or None."""
    found = checkpointer.restore_newest(*target.for_checkpoint())
    return None if found is None else (TrainState.from_checkpoint(*found[:2]), found[2])
