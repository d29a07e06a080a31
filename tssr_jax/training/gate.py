"""How the gate of a model with memories learns: on histories whose next item nothing else has seen.

The network is as it is for ranking: without dropout, with averaged parameters if there are any. It
gets no gradient. Everything competes but the items of the history's window.

In a split by time many answers are items that training never saw, but training has seen all labels.
So labels that were new when they were asked for count as never seen (`as_new`).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tssr_jax.evaluation.ranking import rows_in_tiles, seen_items
from tssr_jax.evaluation.top_k import competing_scores
from tssr_jax.losses.base import LossTerm
from tssr_jax.memory.scores import Memories
from tssr_jax.models.apply import head_weights, newest
from tssr_jax.models.content import Content
from tssr_jax.models.recall import (
    GATE,
    Recalled,
    added,
    by_frequency,
    memory_scores,
    recall,
    trusted,
)
from tssr_jax.models.tssr import TSSR
from tssr_jax.parallel import collectives
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.collectives import Axis

# The gate gets a gradient at every fourth step of the network: each scores the whole catalogue.
PERIOD = 4
# Histories of such a gradient.
ROWS = 64
# These memories have counted the labels. Their scores of the labels come with the rows, computed
# as if the labels were not counted.
_COUNTED = ("co_occurrence", "repeats")
# These memories know nothing of an item that training never saw.
_COUNTING = ("co_occurrence", "repeats", "popularity")


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
    outputs = newest(model, fixed, rows, content)
    new = _new_classes(rows, catalogue, axis)
    if new is not None:
        content = _unseen(content, new, catalogue)
    memories = content.memories
    assert memories is not None
    fused, rows = catalogue.gather_rows((outputs.fused[:, -1], dict(rows)))
    weights = head_weights(model, fixed, content)

    def of_tile(
        gate: Any, tile: tuple[jax.Array, Mapping[str, jax.Array]]
    ) -> tuple[jax.Array, jax.Array]:
        """Of some rows: scalars whose gradients are this shard's part of the losses', and losses.

        Both are [rows].
        """
        fused, rows = tile
        items, labels, real = (rows[name] for name in ("item_sequence", "labels", "row_mask"))
        seen = items[:, :0] if keep_seen else seen_items(items, labels)
        nothing = jnp.zeros((len(labels), catalogue.shard_classes))
        competes = jnp.isfinite(competing_scores(nothing, seen, catalogue))
        params = {**fixed, GATE: gate}
        recalled = recall(model, params, rows, memories)
        assert recalled is not None
        of_memories = _memory_scores(model, recalled, memories, rows, new)
        neural = weights.score(trusted(fused, recalled.trust), model.compute_dtype)
        frequency = by_frequency(model, params, memories)
        scores = added(neural, of_memories, recalled.trust, frequency)
        fixed_scores = jax.lax.stop_gradient(scores)
        normaliser = catalogue.logsumexp(jnp.where(competes, fixed_scores, -jnp.inf))
        shares = jnp.where(competes, jnp.exp(fixed_scores - normaliser[:, None]), 0.0)
        own, _ = catalogue.pick_own(scores, labels[:, None])
        losses = jnp.where(real, normaliser - catalogue.pick(fixed_scores, labels), 0.0)
        return jnp.where(real, (shares * scores).sum(axis=1) - own[:, 0], 0.0), losses

    def share(gate: Any) -> tuple[jax.Array, jax.Array]:
        tile_of = functools.partial(of_tile, gate)
        shares, losses = rows_in_tiles(tile_of, (fused, rows), catalogue.shard_classes)
        return shares.sum(), losses

    grads, losses = jax.grad(share, has_aux=True)(gate)
    total = losses.sum() / catalogue.num_shards
    number = rows["row_mask"].sum() / catalogue.num_shards
    grads, term = collectives.psum((grads, LossTerm(total, number)), axis)
    return jax.tree.map(lambda x: x / term.weight, grads), term


def _memory_scores(
    model: TSSR, recalled: Recalled, memories: Memories, rows: Mapping[str, jax.Array], new: Any
) -> list[jax.Array]:
    """Scores by each memory as if the labels were not counted, each [rows, shard_classes].

    Args:
      model: names the memories.
      recalled: of the rows.
      memories: what they read.
      rows: with `labels` and `label_scores`.
      new: bool [num_classes], classes that count as never seen; None for none.
    """
    catalogue, names = model.classes, model.memory
    scores = dict(zip(names, memory_scores(names, recalled, memories, catalogue), strict=True))
    for i, name in enumerate(counted_memories(names)):
        own = rows["label_scores"][:, i]
        scores[name] = catalogue.replaced(scores[name], rows["labels"], own)
    if new is not None:
        unseen = catalogue.own_columns(new)
        for name in [name for name in names if name in _COUNTING]:
            scores[name] = jnp.where(unseen, 0.0, scores[name])
    return list(scores.values())


def _new_classes(rows: Mapping[str, jax.Array], catalogue: Catalogue, axis: Axis) -> Any:
    """The labels of all devices' rows that count as never seen, bool [num_classes].

    None with leave-one-out, where no label does.

    Args:
      rows: this device's rows.
      catalogue: tells the number of classes.
      axis: the device axis that the rows are cut along.
    """
    if "as_new" not in rows:
        return None
    asked = jnp.where(rows["as_new"] & rows["row_mask"], rows["labels"], 0)
    nothing = jnp.zeros(catalogue.num_classes, bool)
    return nothing.at[collectives.all_gather(asked, axis, 0)].set(True).at[0].set(False)


def _unseen(content: Content, new: jax.Array, catalogue: Catalogue) -> Content:
    """The content as if training had not seen the classes `new`, bool [num_classes]."""
    memories = content.memories
    assert memories is not None
    frequency: Any = jnp.asarray(memories.frequency)
    frequency = jnp.where(new, frequency[0], frequency)  # nobody took class 0
    memories = memories._replace(frequency=frequency)
    known = content.known
    if known is not None:
        known = known & ~catalogue.own_columns(new)
    return dataclasses.replace(content, memories=memories, known=known)
