"""Results of a recommender."""

import dataclasses
from typing import NamedTuple

import numpy as np


class ScoredItem(NamedTuple):
    """An item of a list.

    Attributes:
      item: the owner's id.
      title: "" without one.
      score: what the list is ordered by.
    """

    item: str
    title: str
    score: float


@dataclasses.dataclass(frozen=True)
class Recommendations:
    """The list for one history.

    Attributes:
      items: best first; fewer than asked for if fewer are allowed and not seen.
      stream_weights: weight of each stream, the gate's mean at the newest position; None if there
        is no gate, or no item of the history is known.
      unknown: ids of the history that the catalogue does not have; they were skipped.
      popular: no item of the history was known: these are the most popular items, and scores are
        how often training has seen them.
    """

    items: tuple[ScoredItem, ...]
    stream_weights: dict[str, float] | None
    unknown: tuple[str, ...]
    popular: bool


class Reason(NamedTuple):
    """An item of a history because of which a memory speaks for another item.

    Attributes:
      item: the owner's id.
      title: "" without one.
      memory: "co_occurrence", "words" or "repeats".
      score: its share of what the memory adds to the item's score.
    """

    item: str
    title: str
    memory: str
    score: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What the model looks at in a history.

    Attributes:
      items: ids and titles of the items that the model reads, the newest ones, oldest first.
      id_weight: of each position, the weight of the id stream (mean of the gate), float32 [length];
        None without a gate.
      attention: by stream, how much the newest position attends to each one in each layer, mean
        over heads, float32 [layers, length]; rows sum to 1. Empty for a recurrent model.
      layers: names of the layers; "cross" layers attend to the other stream.
      unknown: ids that the catalogue does not have.
    """

    items: tuple[tuple[str, str], ...]
    id_weight: np.ndarray | None
    attention: dict[str, np.ndarray]
    layers: tuple[str, ...]
    unknown: tuple[str, ...]


def stream_weights(id_weight: float) -> dict[str, float] | None:
    """Weight of each stream by that of the id stream; None if it is NaN, without a gate."""
    return None if np.isnan(id_weight) else {"id": id_weight, "content": 1.0 - id_weight}
