"""What the gate of a model with memories learns from, prepared once for a run."""

import jax.numpy as jnp
import numpy as np

from tssr_jax.data_pipeline.gate_rows import GateRows, gate_rows
from tssr_jax.data_pipeline.input_pipeline import GateInputs
from tssr_jax.errors import UserError
from tssr_jax.memory.co_occurrence import Counting
from tssr_jax.memory.leave_one_out import Histories, scores_without_own
from tssr_jax.memory.scores import history_weights
from tssr_jax.memory.tables import scale_of
from tssr_jax.run import Run, co_occurrences
from tssr_jax.training.gate import PERIOD, ROWS


def gate_inputs(run: Run) -> GateInputs | None:
    """The histories that the gate learns from; None for a model without memories.

    Returns:
      Arrays `item_sequence`, `times` and, where the data has them, `events` and `profiles` int32
      [rows, L], `labels` int32 [rows], and `label_scores` float32 [rows], what co-occurrence says
      of the labels without the user's own interactions.

    Raises:
      UserError: if no user can lend an item.
    """
    config = run.config
    if not run.model.memory:
        return None
    rows = gate_rows(run.sequences, config, run.data.num_items)
    if not len(rows.users):
        raise UserError(
            "--config.model.memory needs users with 5 interactions at least whose newest training "
            "item, from which its gate learns, is new to them; there are none. Set it to ()."
        )
    label_scores: np.ndarray = np.zeros(len(rows.users))
    if "co_occurrence" in run.model.memory:
        events, table = co_occurrences(config, run.data, run.sequences)
        weights = _weights(rows, config.memory.decay)
        histories = Histories(rows.users, rows.items, weights, rows.labels)
        counting = Counting.from_config(config.memory)
        label_scores = scores_without_own(table, events, histories, counting) / scale_of(table)
    arrays = {
        "item_sequence": rows.items,
        "times": rows.times,
        "labels": rows.labels,
        "label_scores": label_scores.astype(np.float32),
    }
    return GateInputs(arrays | rows.side, ROWS, PERIOD)


def _weights(rows: GateRows, decay: float) -> np.ndarray:
    items, times = jnp.asarray(rows.items), jnp.asarray(rows.times)
    return np.asarray(history_weights(items, times, decay))
