"""Which items the same users took, close in time: the collaborative memory.

    c_ij = sum over users who took both of b (1 + |t_uj - t_ui| / 1 minute)^-fading
    likeness_ij = c_ij / (n_i^power n_j^(1 - power) + shrinkage)

j is the item that is recommended: b is 1/2 for users who took it before i, 1 for others. n counts
users. With b = 1, power 0.5 and without fading, likeness is the shrunk cosine of item-kNN (Sarwar
et al., WWW 2001; Ferrari Dacrema et al., RecSys 2019). A power law works at every time scale:
where times are days as well as where they are seconds. A user's item counts once, at the time when
the user first took it. Everything is counted on training interactions. Memory holds the
interactions twice (25 bytes for each) and the result.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import ml_collections
import numpy as np

from tssr_jax.data_pipeline.store import SequenceStore
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.engine import IN_PROCESS, Engine
from tssr_jax.memory.scores import Neighbours

# What follows an item tells more of what to recommend after it than what came before. Better than
# 1 on all of four data sets; 0.3 to 0.7 are alike (docs/results/memories.md).
_BACKWARD = 0.5
# If the catalogue has more than this many items per pair, pairs are summed by sorting them, not in
# an array of the catalogue's size.
_SORTED_UP_TO = 5
# The catalogue is counted in so many ranges, which workers share.
_RANGES = 64


class Events(NamedTuple):
    """What users took in training, each item of a user once.

    Attributes:
      offsets: int64 [num_users + 1]; user u has the events offsets[u]:offsets[u + 1].
      items: int32 [events].
      minutes: int32 [events], when the user first took the item, in minutes since 1970.
      again: bool [events], whether the user took the item once more.
    """

    offsets: np.ndarray
    items: np.ndarray
    minutes: np.ndarray
    again: np.ndarray


def training_events(
    store: SequenceStore, held_out: np.ndarray | None = None, ends: np.ndarray | None = None
) -> Events:
    """The training interactions of a data set.

    Args:
      store: the sequences.
      held_out: bool [num_items + 1], items that training does not see; None is none.
      ends: int [num_users], how many interactions of each user count; by default all but those
        that are held out.
    """
    if ends is None:
        ends = store.splits.trained
    parts, sizes = [], np.zeros(ends.size, np.int64)
    for users, rows in store.chunks(np.arange(ends.size)):
        read, longest = tf.constant(ends[users]), max(1, int(ends[users].max()))
        items, minutes = rows.windows(read, longest).numpy(), rows.times(read, longest).numpy()
        if held_out is not None:
            items[held_out[items]] = 0
        sizes[users], *columns = _first_events(items, minutes)
        parts.append((users, columns))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    types = (np.int32, np.int32, bool)
    events = [np.empty(offsets[-1], kind) for kind in types]
    for users, columns in parts:
        number = sizes[users]
        places = np.repeat(offsets[users + 1] - np.cumsum(number), number) + np.arange(number.sum())
        for values, some in zip(events, columns, strict=True):
            values[places] = some
    return Events(offsets, *events)


def _first_events(items: np.ndarray, minutes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Each row's distinct items, in order of time: numbers int64 [rows], items, minutes, again."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    first = np.diff(ordered, axis=1, prepend=0) > 0
    more = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)
    kept, again = np.zeros_like(first), np.zeros_like(first)
    np.put_along_axis(kept, order, first, axis=1)
    np.put_along_axis(again, order, np.pad(more, ((0, 0), (0, 1))), axis=1)
    return kept.sum(axis=1), items[kept], minutes[kept], again[kept]


class Counting(NamedTuple):
    """How pairs are counted, see the module's docstring.

    Attributes:
      fading: how fast the weight of a pair falls with the time between; 0 ignores times.
      power: exponent of n_i; the exponent of n_j is 1 - power.
      shrinkage: lowers likeness that rests on few users.
    """

    fading: float
    power: float
    shrinkage: float

    @classmethod
    def from_config(cls, settings: ml_collections.ConfigDict) -> Counting:
        """That of section `memory` of a configuration."""
        return cls(*(settings[name] for name in cls._fields))

    def pair_weights(self, gaps: np.ndarray) -> np.ndarray:
        """Weights of pairs of items, float32.

        Args:
          gaps: how many minutes after the first item the user took the second, recommended one.
        """
        # As a power of float64 it takes three times as long, which is felt in all of counting.
        minutes = np.abs(gaps).astype(np.float32)
        weights = np.exp(np.float32(-self.fading) * np.log(minutes + np.float32(1.0)))
        return np.where(gaps < 0, np.float32(_BACKWARD) * weights, weights)

    def denominators(self, counts: np.ndarray, recommended: np.ndarray) -> np.ndarray:
        """What `c_ij` is divided by, from `n_i` and `n_j`."""
        return counts**self.power * recommended ** (1 - self.power) + self.shrinkage


def co_occurrence_neighbours(
    events: Events,
    num_items: int,
    number: int,
    counting: Counting,
    engine: Engine = IN_PROCESS,
) -> Neighbours:
    """The neighbours of each item with the highest likeness; all pairs are counted.

    Args:
      events: the training interactions.
      num_items: size of the catalogue.
      number: how many neighbours are kept.
      counting: how pairs are counted.
      engine: counts them, some items at a time.
    """
    number = min(number, num_items)
    neighbours = np.zeros((num_items + 1, number), np.int32)
    likeness = np.zeros((num_items + 1, number), np.float32)
    ranges = _ranges(np.bincount(events.items, minlength=num_items + 1))
    make = functools.partial(_Counter, events, num_items, number, counting)
    for index, table in engine.map(make, ranges):
        some = slice(*ranges[index])
        neighbours[some], likeness[some] = table
    return Neighbours(neighbours, likeness)


def _ranges(counts: np.ndarray) -> list[tuple[int, int]]:
    """Ranges of classes with about equal numbers of interactions."""
    ends = np.cumsum(counts)
    bounds = np.searchsorted(ends, np.linspace(0, ends[-1], _RANGES + 1)[1:-1])
    return list(itertools.pairwise(np.unique([0, *bounds, counts.size]).tolist()))


class _Counter:
    """A worker: neighbours of a range of classes."""

    def __init__(self, events: Events, num_items: int, number: int, counting: Counting):
        self._events, self._num_items = events, num_items
        self._number, self._counting = number, counting
        self._counts = np.bincount(events.items, minlength=num_items + 1)
        self._by_item = np.argsort(events.items, kind="stable")
        self._user_of = np.repeat(np.arange(events.offsets.size - 1), np.diff(events.offsets))

    def __call__(self, classes: tuple[int, int]) -> Neighbours:
        first, end = classes
        neighbours = np.zeros((end - first, self._number), np.int32)
        likeness = np.zeros((end - first, self._number), np.float32)
        for item, others, pairs in self._pairs(max(first, 1), end):
            bottoms = self._counting.denominators(self._counts[item], self._counts[others])
            alike = pairs / bottoms
            best = np.argsort(-alike, kind="stable")[: self._number]
            neighbours[item - first, : best.size] = others[best]
            likeness[item - first, : best.size] = alike[best]
        return Neighbours(neighbours, likeness)

    def _pairs(self, first: int, end: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Each item that occurs, the items that it occurs with, ascending, and their `c_ij`."""
        events, ends = self._events, np.cumsum(self._counts)
        for item in range(first, end):
            own = self._by_item[ends[item - 1] : ends[item]]
            if not own.size:
                continue
            users = self._user_of[own]
            starts, stops = events.offsets[users], events.offsets[users + 1]
            sizes = stops - starts
            places = np.repeat(stops - np.cumsum(sizes), sizes) + np.arange(sizes.sum())
            gaps = events.minutes[places] - np.repeat(events.minutes[own], sizes)
            weights = self._counting.pair_weights(gaps)
            sums = _sums(events.items[places], weights, self._num_items)
            others, pairs = (values[sums[0] != item] for values in sums)
            yield item, others, pairs


def _sums(items: np.ndarray, weights: np.ndarray, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct items, ascending, and the sums of their weights."""
    if _SORTED_UP_TO * items.size < num_items:  # no array as long as the catalogue
        distinct, place = np.unique(items, return_inverse=True)
        return distinct, np.bincount(place, weights)
    sums = np.bincount(items, weights, minlength=num_items + 1)
    distinct = np.flatnonzero(sums)
    return distinct, sums[distinct]
