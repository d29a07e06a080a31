"""How the gate of a model with memories learns: on histories whose next item nothing else has seen.

The network is as it is for ranking: without dropout, with averaged parameters if there are any. It
gets no gradient. Everything competes that would be ranked.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tssr_jax.data_pipeline.gate_rows import GateRows, gate_rows
from tssr_jax.errors import UserError
from tssr_jax.evaluation.ranking import seen_items
from tssr_jax.evaluation.top_k import competing_scores
from tssr_jax.losses.base import LossTerm
from tssr_jax.memory.co_occurrence import Counting
from tssr_jax.memory.leave_one_out import Histories, scores_without_own
from tssr_jax.memory.scores import history_weights
from tssr_jax.memory.tables import scale_of
from tssr_jax.models.apply import encode, head_weights
from tssr_jax.models.content import Content
from tssr_jax.models.recall import added, memory_scores, recall
from tssr_jax.models.tssr import TSSR
from tssr_jax.parallel import collectives
from tssr_jax.run import Run, co_occurrences

GATE = "memory_gate"


def gate_inputs(run: Run) -> dict[str, np.ndarray] | None:
    """The histories that the gate learns from; None for a model without memories.

    Returns:
      `item_sequence` and `times` int32 [rows, L], `labels` int32 [rows], and `label_scores` float32
      [rows], what co-occurrence says of the labels without the user's own interactions.

    Raises:
      UserError: if no user can lend an item.
    """
    config = run.config
    if not run.model.memory:
        return None
    rows = gate_rows(run.sequences, config, run.data.num_items)
    if not len(rows.users):
        raise UserError(
            "--config.model.memory needs users with 5 interactions at least, whose newest training "
            "item its gate learns from; there are none. Set it to ()."
        )
    label_scores: np.ndarray = np.zeros(len(rows.users))
    if "co_occurrence" in run.model.memory:
        events, table = co_occurrences(config, run.data, run.sequences)
        weights = _weights(rows, config.memory.decay)
        histories = Histories(rows.users, rows.items, weights, rows.labels)
        counting = Counting.from_config(config.memory)
        label_scores = scores_without_own(table, events, histories, counting) / scale_of(table)
    return {
        "item_sequence": rows.items,
        "times": rows.times,
        "labels": rows.labels,
        "label_scores": label_scores.astype(np.float32),
    }


def _weights(rows: GateRows, decay: float) -> np.ndarray:
    items, times = jnp.asarray(rows.items), jnp.asarray(rows.times)
    return np.asarray(history_weights(items, times, decay))


def gate_gradients(
    model: TSSR, gate: Any, fixed: Any, rows: Mapping[str, jax.Array], content: Content
) -> tuple[Any, LossTerm]:
    """The gradient of the gate's mean loss, and the loss: cross entropy among what would be ranked.

    Args:
      model: tells how rows and catalogue lie on the devices.
      gate: the gate's parameters.
      fixed: all parameters, as they are for ranking.
      rows: this device's rows of `gate_inputs`.
      content: with the memories.

    Returns:
      The gradient, and the sum of the losses with their number, of all devices.
    """
    catalogue, axis = model.classes, model.rows_axis
    memories = content.memories
    assert memories is not None
    outputs = encode(model, fixed, rows["item_sequence"], content, last_only=True)
    fused, rows = catalogue.gather_rows((outputs.fused[:, -1], dict(rows)))
    items, labels = rows["item_sequence"], rows["labels"]
    neural = head_weights(model, fixed, content).score(fused, model.compute_dtype)
    neural = jax.lax.stop_gradient(neural)
    nothing = competing_scores(jnp.zeros_like(neural), seen_items(items, labels), catalogue)
    competes = jnp.isfinite(nothing)

    def share(gate: Any) -> tuple[jax.Array, jax.Array]:
        """This shard's share of the losses' gradient, as a function; and the losses."""
        recalled = recall(model, {**fixed, GATE: gate}, rows, memories)
        assert recalled is not None
        of_memories = [
            catalogue.replaced(scores, labels, rows["label_scores"])
            if name == "co_occurrence"
            else scores
            for name, scores in zip(
                model.memory,
                memory_scores(model.memory, recalled, memories, catalogue),
                strict=True,
            )
        ]
        scores = added(neural, of_memories, recalled.trust)
        fixed_scores = jax.lax.stop_gradient(scores)
        normaliser = catalogue.logsumexp(jnp.where(competes, fixed_scores, -jnp.inf))
        shares = jnp.where(competes, jnp.exp(fixed_scores - normaliser[:, None]), 0.0)
        own, _ = catalogue.pick_own(scores, labels[:, None])
        losses = normaliser - catalogue.pick(fixed_scores, labels)
        return (shares * scores).sum() - own.sum(), losses

    grads, losses = jax.grad(share, has_aux=True)(gate)
    total = losses.sum() / catalogue.num_shards
    number = jnp.float32(losses.size / catalogue.num_shards)
    grads, term = collectives.psum((grads, LossTerm(total, number)), axis)
    return jax.tree.map(lambda x: x / term.weight, grads), term
