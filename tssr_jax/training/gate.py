"""How the gate of a model with memories learns: on histories whose next item nothing else has seen.

The network is as it is for ranking: without dropout, with averaged parameters if there are any. It
gets no gradient. Everything competes that would be ranked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tssr_jax.evaluation.ranking import seen_items
from tssr_jax.evaluation.top_k import competing_scores
from tssr_jax.losses.base import LossTerm
from tssr_jax.models.apply import head_weights, newest
from tssr_jax.models.content import Content
from tssr_jax.models.recall import GATE, added, by_frequency, memory_scores, recall, trusted
from tssr_jax.models.tssr import TSSR
from tssr_jax.parallel import collectives

# The gate gets a gradient at every fourth step of the network: each scores the whole catalogue.
PERIOD = 4
# Histories of such a gradient.
ROWS = 64
# These memories have counted the labels. Their scores of the labels come with the rows, computed
# as if the labels were not counted.
_COUNTED = ("co_occurrence", "repeats")


def counted_memories(memory: Sequence[str]) -> tuple[str, ...]:
    """The memories of a model that have counted the labels; columns of `label_scores`."""
    return tuple(name for name in memory if name in _COUNTED)


def gate_gradients(  # noqa: PLR0917
    model: TSSR,
    gate: Any,
    fixed: Any,
    rows: Mapping[str, jax.Array],
    content: Content,
    keep_seen: bool = False,
) -> tuple[Any, LossTerm]:
    """The gradient of the gate's mean loss, and the loss: cross entropy among what would be ranked.

    Args:
      model: tells how rows and catalogue lie on the devices.
      gate: the gate's parameters.
      fixed: all parameters, as they are for ranking.
      rows: this device's rows of `gate_inputs.gate_inputs`; where `row_mask` is False they only
        fill up.
      content: with the memories.
      keep_seen: items of the history compete.

    Returns:
      The gradient, and the sum of the losses with their number, of all devices.
    """
    catalogue, axis = model.classes, model.rows_axis
    memories = content.memories
    assert memories is not None
    outputs = newest(model, fixed, rows, content)
    fused, rows = catalogue.gather_rows((outputs.fused[:, -1], dict(rows)))
    items, labels, real = (rows[name] for name in ("item_sequence", "labels", "row_mask"))
    weights = head_weights(model, fixed, content)
    seen = items[:, :0] if keep_seen else seen_items(items, labels)
    nothing = competing_scores(jnp.zeros((len(labels), catalogue.shard_classes)), seen, catalogue)
    competes = jnp.isfinite(nothing)

    def share(gate: Any) -> tuple[jax.Array, jax.Array]:
        """This shard's share of the losses' gradient, as a function; and the losses."""
        params = {**fixed, GATE: gate}
        recalled = recall(model, params, rows, memories)
        assert recalled is not None
        of_memories = dict(
            zip(
                model.memory,
                memory_scores(model.memory, recalled, memories, catalogue),
                strict=True,
            )
        )
        for i, name in enumerate(counted_memories(model.memory)):
            own = rows["label_scores"][:, i]
            of_memories[name] = catalogue.replaced(of_memories[name], labels, own)
        neural = weights.score(trusted(fused, recalled.trust), model.compute_dtype)
        frequency = by_frequency(model, params, memories)
        scores = added(neural, list(of_memories.values()), recalled.trust, frequency)
        fixed_scores = jax.lax.stop_gradient(scores)
        normaliser = catalogue.logsumexp(jnp.where(competes, fixed_scores, -jnp.inf))
        shares = jnp.where(competes, jnp.exp(fixed_scores - normaliser[:, None]), 0.0)
        own, _ = catalogue.pick_own(scores, labels[:, None])
        losses = jnp.where(real, normaliser - catalogue.pick(fixed_scores, labels), 0.0)
        return jnp.where(real, (shares * scores).sum(axis=1) - own[:, 0], 0.0).sum(), losses

    grads, losses = jax.grad(share, has_aux=True)(gate)
    total = losses.sum() / catalogue.num_shards
    number = real.sum() / catalogue.num_shards
    grads, term = collectives.psum((grads, LossTerm(total, number)), axis)
    return jax.tree.map(lambda x: x / term.weight, grads), term
