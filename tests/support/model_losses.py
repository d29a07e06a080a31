"""Losses of a model, as a configuration says, and states in checkpoints."""

from tssr_jax.losses import objective
from tssr_jax.losses.objective import ONLY_THE_BATCH, LossConfig
from tssr_jax.models.apply import heads
from tssr_jax.training.state import TrainState


def loss_terms(  # noqa: PLR0917
    model, params, outputs, batch, config, features=None, competitors=ONLY_THE_BATCH
):
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


def term_weights(config):
    loss = LossConfig.from_config(config)
    return objective.term_weights(config.model.streams, config.model.mixing, loss)


def save(checkpointer, state, progress):
    checkpointer.save(int(state.step), *state.for_checkpoint(), progress)


def restore_newest(checkpointer, target):
    """The newest state and progress, or None."""
    found = checkpointer.restore_newest(*target.for_checkpoint())
    return None if found is None else (TrainState.from_checkpoint(*found[:2]), found[2])
