"""What the gate of a model with memories learns from, prepared once for a run."""

import jax.numpy as jnp
import numpy as np

from tssr_jax.data_pipeline.gate_rows import GateRows, gate_rows
from tssr_jax.data_pipeline.input_pipeline import GateInputs
from tssr_jax.data_pipeline.windows import held_out_items
from tssr_jax.errors import UserError
from tssr_jax.memory import repeats
from tssr_jax.memory.co_occurrence import Counting, Events, training_events
from tssr_jax.memory.leave_one_out import Histories, scores_without_own
from tssr_jax.memory.repeats import rates_without_own, repeat_table
from tssr_jax.memory.scores import history_weights
from tssr_jax.memory.tables import co_occurrence_table, scale_of
from tssr_jax.run import Run
from tssr_jax.training.gate import PERIOD, ROWS, counted_memories

# Set apart from other draws that are keyed by the seed.
_STREAM = 8


def gate_inputs(run: Run) -> GateInputs | None:
    """The histories that the gate learns from; None for a model without memories.

    Returns:
      Arrays `item_sequence`, `times` and, where the data has them, `events` and `profiles` int32
      [rows, L], `labels` and `asked` int32 [rows], and `label_scores` float32 [rows, memories of
      `counted_memories`], what these say of the labels as if the labels were not counted. In a
      split by time also `as_new` bool [rows], labels that count as never seen.

    Raises:
      UserError: if no user can lend an item.
    """
    config = run.config
    if not run.model.memory:
        return None
    rows = gate_rows(run.sequences, config, run.data.num_items)
    if not len(rows.users):
        raise UserError(
            "The gate of --config.model.memory found no user to learn from. It needs users with at "
            "least 5 interactions whose newest training item is new to them (or "
            "--config.evaluate.keep_seen=True). Set --config.model.memory=()."
        )
    events = training_events(run.sequences, held_out_items(config, run.data.num_items))
    counted = counted_memories(run.model.memory)
    scores = np.zeros((len(rows.users), len(counted)), np.float32)
    for i, name in enumerate(counted):
        scores[:, i] = _label_scores(name, run, rows, events)
    arrays = {
        "item_sequence": rows.items,
        "times": rows.times,
        "labels": rows.labels,
        "asked": rows.asked,
        "label_scores": scores,
    }
    if config.evaluate.split == "global_time":
        arrays["as_new"] = _as_new(rows, events, run)
    return GateInputs(arrays | rows.side, ROWS, PERIOD)


def _as_new(rows: GateRows, events: Events, run: Run) -> np.ndarray:
    """Whether each label counts as never seen, bool [rows].

    Evaluation asks for up to `Splits.asked_for` minutes after training ends. For each label a time
    is drawn uniformly from these. The label counts as never seen if nobody had taken the item so
    long before it was asked for.
    """
    first = np.full(run.data.num_items + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, events.items, events.minutes)
    draws = np.random.default_rng([run.config.seed % 2**32, _STREAM]).random(rows.labels.size)
    return first[rows.labels] > rows.asked - draws * run.sequences.splits.asked_for


def _label_scores(name: str, run: Run, rows: GateRows, events: Events) -> np.ndarray:
    """What a memory says of the labels without the interactions with them, [rows]."""
    settings, num_items = run.config.memory, run.data.num_items
    if name == "repeats":
        scale = scale_of(repeat_table(events, num_items))
        had = np.where(rows.items == rows.labels[:, None], _weights(rows, repeats.DECAY), 0.0)
        return had.sum(axis=1) * rates_without_own(events, rows.labels, rows.before) / scale
    table = co_occurrence_table(events, num_items, settings, run.config.data.cache_dir)
    weights = _weights(rows, settings.decay)
    histories = Histories(rows.users, rows.items, weights, rows.labels, rows.before)
    counting = Counting.from_config(settings)
    return scores_without_own(table, events, histories, counting) / scale_of(table)


def _weights(rows: GateRows, decay: float) -> np.ndarray:
    items, times = jnp.asarray(rows.items), jnp.asarray(rows.times)
    return np.asarray(history_weights(items, times, decay))
