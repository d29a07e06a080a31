"""Memories as further experts: a gate adds what was counted to what the network says.

    score_j = b_j + sum over the network's parts p: a_p(h) x_p(h) v_pj + o c_j
              + sum over memories m: q_m(h) exp(r_m c_j) log(1 + k_m(h) memory_mj(h))

x are states of the history, v the head's vectors, and b its bias. A network of experts has two
parts: what it says by id vectors, and by content vectors. Others have one. a, q and k are positive,
and functions of the history alone. c_j is the logarithm of how often training saw class j: words
tell most of rare classes, the network of frequent ones. A class that a memory does not know keeps
the network's score; a mixture of probabilities was worse, and a product of experts would punish
such a class (docs/internals/decisions.md, "Memories").

Co-occurrence counts the user's own interactions, too. So the gate learns from histories whose next
item nothing else has seen: see `data_pipeline.gate_rows`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from tssr_jax.memory import repeats
from tssr_jax.memory.popularity import popularity_at
from tssr_jax.memory.scores import NOW, Memories, history_weights, neighbour_scores
from tssr_jax.models.head import HeadWeights
from tssr_jax.parallel.catalogue import Catalogue

# The name of the gate's parameters.
GATE = "memory_gate"
# The gate has some thirty parameters; this multiplies the size of their steps.
_STEP_FACTOR = 10.0
# The first factors. An item's best neighbour has a likeness of 1 on average, and so adds
# 0.6 log(1 + 5), about 1.1, to a score.
_START = {"neural": 1.0, "weight": 0.6, "sharpness": 5.0}


class Trust(NamedTuple):
    """How much the network and the memories count for a history; all are positive.

    Attributes:
      neural: [batch, parts], the factors a of the network's scores.
      weights: [batch, memories], the factors q.
      sharpness: [batch, memories], the factors k.
    """

    neural: jax.Array
    weights: jax.Array
    sharpness: jax.Array


class ByFrequency(NamedTuple):
    """What depends on how often training saw a class.

    Attributes:
      factors: [memories, shard_classes], exp(r_m c_j).
      offsets: [shard_classes], o c_j.
    """

    factors: jax.Array
    offsets: jax.Array


class MemoryGate(nn.Module):
    """Reads a history's length, and whether its newest items are of one time.

    Items of one time are most often a basket, or a session: what follows is likely of it, too.

    Attributes:
      num_parts: parts of the network's scores.
      num_memories: number of memories.
    """

    num_parts: int
    num_memories: int

    def setup(self) -> None:
        """Parameters of zeros: at first all histories and classes have the factors `_START`."""
        zeros, number = nn.initializers.zeros_init(), self.num_memories
        self.factors = self.param("factors", zeros, (3, self.num_parts + 2 * number))
        self.frequency = self.param("frequency", zeros, (1 + number,))

    def __call__(
        self, items: jax.Array, times: jax.Array, least_length: jax.Array | int = 1
    ) -> Trust:
        """Trust for histories.

        Args:
          items: int [batch, length], oldest first, 0 is padding on the left.
          times: int [batch, length].
          least_length: see `Memories`.
        """
        number = self.num_memories
        length = jnp.log(jnp.maximum((items > 0).sum(axis=1), least_length)) - 1.0
        # A history of one item, in a window of one: nothing stands before it.
        items, times = (jnp.c_[jnp.zeros_like(x[:, :1]), x] for x in (items, times))
        tied = (items[:, -2] > 0) & (times[:, -1] == times[:, -2])
        read = jnp.stack([jnp.ones_like(length), length, tied.astype(length.dtype)], axis=1)
        sizes = {"neural": self.num_parts, "weight": number, "sharpness": number}
        start = [_START[name] for name, size in sizes.items() for _ in range(size)]
        logits = _STEP_FACTOR * read @ self.factors + jnp.log(jnp.array(start))
        factors = jnp.exp(logits)
        ends = (self.num_parts, self.num_parts + number)
        return Trust(*jnp.split(factors, ends, axis=1))

    def by_frequency(self, frequency: jax.Array) -> ByFrequency:
        """What depends on c_j, `frequency` [shard_classes]."""
        logits = _STEP_FACTOR * self.frequency[:, None] * frequency
        return ByFrequency(jnp.exp(logits[1:]), logits[0])


class Recalled(NamedTuple):
    """What the memories' scores of a history depend on.

    Attributes:
      items: int [batch, length].
      weights: float32 [batch, length], of the items.
      again: float32 [batch, length], of the items where they are taken again.
      asked: int [batch], minute of which popularity is read.
      trust: of the history.
    """

    items: jax.Array
    weights: jax.Array
    again: jax.Array
    asked: jax.Array
    trust: Trust

    def weights_of(self, memory: str) -> jax.Array:
        """The weights of the items for a memory with a table, float32 [batch, length]."""
        return self.again if memory == "repeats" else self.weights


def recall(
    model: Any, params: Any, batch: Mapping[str, Any], memories: Memories | None
) -> Recalled | None:
    """Reads the histories of a batch; None for a model without memories.

    Args:
      model: a TSSR.
      params: its parameters.
      batch: `item_sequence` int [batch, length]; `times`, without which each item has a place of
        its own, and the newest one is of now; and maybe `asked` int [batch], minutes of which
        popularity is read. By default these are of the newest items.
      memories: what the model reads.

    Raises:
      ValueError: if the model has memories and `memories` is None.
    """
    if not model.memory:
        return None
    if memories is None:
        raise ValueError(f"the model reads the memories {model.memory}: Content(memories=...)")
    items, times = batch["item_sequence"], batch.get("times")
    if times is None:
        times = jnp.broadcast_to(NOW - jnp.arange(items.shape[1])[::-1], items.shape)
    trust = model.apply({"params": params}, items, times, memories.least_length, method="trust")
    weights = history_weights(items, times, jnp.asarray(memories.decay))
    again = history_weights(items, times, repeats.DECAY)
    asked = batch.get("asked")
    if asked is None:
        asked = times[:, -1]
        if memories.popularity is not None:
            asked = jnp.maximum(asked, memories.popularity.asked_from)
    return Recalled(items, weights, again, asked, cast(Trust, trust))


def memory_scores(
    names: Sequence[str], recalled: Recalled, memories: Memories, catalogue: Catalogue
) -> list[jax.Array]:
    """Scores of all classes by each memory, each float32 [batch, shard_classes]."""

    def scores(name: str) -> jax.Array:
        if name in memories.tables:
            of, weights = memories.tables[name], recalled.weights_of(name)
            return neighbour_scores(of, recalled.items, weights, catalogue)
        assert name == "popularity" and memories.popularity is not None
        return catalogue.own_columns(popularity_at(memories.popularity, recalled.asked))

    return [scores(name) for name in names]


def by_frequency(model: Any, params: Any, memories: Memories) -> ByFrequency:
    """What depends on how often training saw a class, for this device's classes."""
    own = model.classes.own_columns(jnp.asarray(memories.frequency))
    found = model.apply({"params": params}, own, method="by_frequency")
    return cast(ByFrequency, found)


def trusted(fused: jax.Array, trust: Trust) -> jax.Array:
    """The head's input with each part multiplied by its factor a, [batch, d].

    The parts are equally wide.

    Args:
      fused: [batch, d].
      trust: of the histories.
    """
    parts = trust.neural.shape[1]
    return fused * jnp.repeat(trust.neural, fused.shape[1] // parts, axis=1)


def added(
    neural: jax.Array, of_memories: Sequence[jax.Array], trust: Trust, classes: ByFrequency
) -> jax.Array:
    """The network's scores of `trusted` states, and what the memories add.

    Args:
      neural: [batch, shard_classes].
      of_memories: each memory's scores, [batch, shard_classes].
      trust: of the histories.
      classes: what depends on the classes.
    """
    scores = neural + classes.offsets
    for i, own in enumerate(of_memories):
        weights = trust.weights[:, i, None] * classes.factors[i]
        scores += weights * jnp.log1p(trust.sharpness[:, i, None] * own)
    return scores


def all_scores(  # noqa: PLR0917
    model: Any,
    params: Any,
    weights: HeadWeights,
    fused: jax.Array,
    recalled: Recalled | None,
    memories: Memories | None,
) -> jax.Array:
    """What the network and the memories say of all classes, [batch, shard_classes].

    Args:
      model: a TSSR.
      params: its parameters.
      weights: of its head.
      fused: the head's input, [batch, d].
      recalled: by `recall`; None for a model without memories.
      memories: what the model reads; None without.
    """
    if recalled is None or memories is None:
        return weights.score(fused, model.compute_dtype)
    neural = weights.score(trusted(fused, recalled.trust), model.compute_dtype)
    own = memory_scores(model.memory, recalled, memories, model.classes)
    return added(neural, own, recalled.trust, by_frequency(model, params, memories))
