"""The step of a device for a batch of histories: states, scores of all classes, best classes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from tssr_jax.errors import UserError, shown
from tssr_jax.evaluation.ranking import Scorer, make_scores_step
from tssr_jax.evaluation.top_k import best_classes
from tssr_jax.models import mixing
from tssr_jax.models.apply import newest
from tssr_jax.models.content import Content
from tssr_jax.models.head import HeadWeights
from tssr_jax.models.recall import Recalled, all_scores, recall
from tssr_jax.models.side import NAMES
from tssr_jax.models.tssr import TSSR
from tssr_jax.recommending.items import KnownHistory

# The stream whose state is scored.
Stream = Literal["fused", "id", "content"]


class Found(NamedTuple):
    """Results for a batch of users.

    Attributes:
      classes: int32 [batch, k], best first; 0 where fewer compete.
      scores: [batch, k], -inf for class 0; training frequencies for a history without items.
      id_weight: mean of the gate at the newest position, the weight of the id stream, [batch]; NaN
        for a model without a gate.
    """

    classes: jax.Array
    scores: jax.Array
    id_weight: jax.Array


class Choice(NamedTuple):
    """What can be recommended, and how it is scored.

    Attributes:
      weights: weights of the head, equal for all requests.
      allowed: bool [num_classes].
      popularity: how often training has seen each class, float32 [num_classes].
    """

    weights: HeadWeights
    allowed: jax.Array
    popularity: jax.Array


def power(base: int, number: int) -> int:
    """The smallest power of `base` that is at least `number`."""
    size = 1
    while size < number:
        size *= base
    return size


def request_batch(
    histories: Sequence[KnownHistory],
    seen: Sequence[Sequence[int]],
    shape: tuple[int, int, int],
    side: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """The batch of a recommend step.

    Args:
      histories: of users.
      seen: classes that are left out of each list.
      shape: rows of the batch; items of a window; the most classes that are left out.
      side: what the model reads beside the items, see `side_names`.
    """
    rows, length, width = shape
    sequences, times = np.zeros((2, rows, length), np.int32)
    beside = {name: np.zeros((rows, length), np.int32) for name in side}
    excluded = np.full((rows, width), -1, np.int32)
    for row, (history, own) in enumerate(zip(histories, seen, strict=True)):
        newest = history.classes[-length:]
        sequences[row, length - len(newest) :] = newest
        times[row, length - len(newest) :] = history.minutes[-length:]
        known = history.side(length)
        for name, values in beside.items():
            values[row, length - len(newest) :] = known[name]
        excluded[row, : len(own)] = own
    return {
        "item_sequence": sequences,
        "times": times,
        "excluded": excluded,
        "row_mask": np.arange(rows) < len(histories),
        **beside,
    }


def side_names(model: TSSR) -> tuple[str, ...]:
    """What a model reads beside the items, see `models.side`."""
    reads = {"events": model.num_events > 0, "profiles": bool(model.profile_sizes)}
    return tuple(name for name in NAMES if reads[name])


def require_stream(model: TSSR, stream: Stream) -> None:
    """Raises UserError if a model can't score by this stream."""
    known = get_args(Stream)
    if stream not in known:
        raise UserError(f"stream is {shown(repr(stream))}; known: {', '.join(known)}.")
    if stream != "fused" and len(model.streams) < 2:
        raise UserError(f"The model has one stream, {model.streams[0]!r}; ask for 'fused'.")
    if stream != "fused" and model.mixing == "concatenation":
        raise UserError(
            "The model projects the concatenation of its streams: none is scored by itself; ask "
            "for 'fused'."
        )


def make_recommend_step(model: TSSR, k: int, stream: Stream = "fused") -> Callable[..., Found]:
    """Returns the step of one device, `(params, batch, content, choice) -> Found` of all rows.

    The batch has `item_sequence` int [batch, length], `excluded` int [batch, width] (-1 is none)
    and `row_mask` bool [batch]. A history without items gets the most popular ones.

    Args:
      model: tells how batch and catalogue lie on the devices.
      k: length of a list, at most the number of items.
      stream: whose state is scored, see `chosen_scorer`.
    """
    catalogue = model.classes

    def best(states: Any, scores: jax.Array, excluded: jax.Array) -> Found:
        found = best_classes(scores, excluded, k, catalogue)
        return Found(*found, states.gate)

    def own_rows(found: Found) -> Found:
        return jax.tree.map(catalogue.own_rows, found)

    def step(
        params: Any,
        batch: Mapping[str, Any],
        content: Content,
        choice: Choice,
    ) -> Found:
        scorer = chosen_scorer(model, choice, stream)
        run = make_scores_step(model, best, ("excluded",), own_rows, scorer)
        return run(params, batch, content)

    return step


class _States(NamedTuple):
    """At the newest position: the head's input, the gate's mean, whether there is an item.

    And what the memories read of the history.
    """

    fused: jax.Array
    gate: jax.Array
    there: jax.Array
    recalled: Recalled | None


def chosen_scorer(model: TSSR, choice: Choice, stream: Stream = "fused") -> Scorer:
    """Scores by the model, or by popularity without a history; -inf for items not allowed.

    Args:
      model: tells how batch and catalogue lie on the devices.
      choice: what can be recommended.
      stream: "fused" scores the gate's mixture; "id" and "content" score one stream's state before
        the gate, or its expert.
    """

    def scorer(
        params: Any, batch: Mapping[str, Any], content: Content
    ) -> tuple[_States, Callable[[_States], jax.Array]]:
        outputs = newest(model, params, batch, content)
        there = batch["item_sequence"][:, -1] > 0
        fused = outputs.fused[:, -1]
        if stream != "fused":
            if model.predicts_by_experts:
                own: dict[str, jax.Array] = {stream: outputs.experts[stream][:, -1]}
                fused = mixing.pool(own, id_reads_content=model.id_reads_content)
            else:
                fused = getattr(outputs, stream).crossed[:, -1]
        gate = jnp.full_like(fused[:, 0], jnp.nan)
        if outputs.gate is not None:
            gate = jnp.where(there, outputs.gate[:, -1].mean(axis=-1), jnp.nan)

        def score(states: _States) -> jax.Array:
            known = (states.recalled, content.memories)
            scores = all_scores(model, params, choice.weights, states.fused, *known)
            scores = jnp.where(states.there[:, None], scores, choice.popularity)
            return jnp.where(choice.allowed, scores, -jnp.inf)

        # One stream alone is asked for what it says by itself.
        mixed = stream == "fused"
        recalled = recall(model, params, batch, content.memories) if mixed else None
        return _States(fused, gate, there, recalled), score

    return scorer
