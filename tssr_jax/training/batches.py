"""What a run learns from."""

from tssr_jax.data_pipeline.input_pipeline import (
    NOTHING_TO_TRAIN_ON,
    Cut,
    TrainBatches,
    make_train_batches,
)
from tssr_jax.data_pipeline.windows import held_out_items
from tssr_jax.errors import UserError
from tssr_jax.run import Run
from tssr_jax.training.gate_inputs import gate_inputs


def train_batches(run: Run) -> TrainBatches:
    """The training batches of a run; each process reads its own rows.

    Raises:
      UserError: if no user has enough interactions to train on.
    """
    config, devices = run.config, run.devices
    rows = devices.round_up(config.train.batch_size)
    batches = make_train_batches(
        run.sequences,
        config,
        Cut(rows, devices.local_rows(rows), devices.num_devices),
        run.encoders,
        held_out_items(config, run.data.num_items),
        gate_inputs(run),
    )
    if not batches.num_users:
        raise UserError(NOTHING_TO_TRAIN_ON)
    return batches
