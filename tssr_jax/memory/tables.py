"""The memories' tables, from the cache if they were computed before."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np

from tssr_jax.data_pipeline import cache
from tssr_jax.engine import IN_PROCESS, Engine
from tssr_jax.memory.choosing import best_fading
from tssr_jax.memory.co_occurrence import Counting, Events, co_occurrence_neighbours
from tssr_jax.memory.scores import Neighbours
from tssr_jax.memory.words import MOST_PRODUCTS, word_neighbours

_VERSION = 4


def co_occurrence_table(
    events: Events,
    num_items: int,
    settings: ml_collections.ConfigDict,
    cache_dir: str,
    engine: Engine = IN_PROCESS,
) -> Neighbours:
    """Neighbours by co-occurrence.

    Args:
      events: the training interactions.
      num_items: size of the catalogue.
      settings: section `memory` of the configuration.
      cache_dir: of prepared data.
      engine: counts.
    """
    number, counting = settings.neighbours, Counting.from_config(settings)

    def count() -> Neighbours:
        return co_occurrence_neighbours(events, num_items, number, counting, engine)

    digest = _digest(events, num_items, number, counting)
    return _cached(f"co_occurrence-{digest}", cache_dir, count)


def chosen_fading(
    events: Events, num_items: int, settings: ml_collections.ConfigDict, cache_dir: str
) -> float:
    """The value of `memory.fading` that suits the data, see `memory.choosing`.

    Args:
      events: the training interactions.
      num_items: size of the catalogue.
      settings: section `memory` of the configuration.
      cache_dir: of prepared data.
    """
    counting = Counting(0.0, settings.power, settings.shrinkage)
    name = f"memories/fading-{_digest(events, num_items, settings.decay, counting)}.npy"
    known = cache.find_array(cache_dir, name)
    if known is not None:
        return float(known)
    found = best_fading(events, num_items, counting, settings.decay)
    cache.save_array(cache_dir, name, np.array(found))
    return found


def word_table(
    texts: Sequence[str],
    settings: ml_collections.ConfigDict,
    cache_dir: str,
    engine: Engine = IN_PROCESS,
) -> Neighbours:
    """Neighbours by words.

    Args:
      texts: text of item i at index i - 1.
      settings: section `memory` of the configuration.
      cache_dir: of prepared data.
      engine: compares the texts.
    """
    number = settings.neighbours
    values = json.dumps([_VERSION, number, MOST_PRODUCTS, list(texts)])
    name = f"words-{hashlib.sha256(values.encode()).hexdigest()[:20]}"
    return _cached(name, cache_dir, lambda: word_neighbours(texts, number, engine=engine))


def _digest(events: Events, *settings: Any) -> str:
    """Identifies what is counted of interactions with some settings."""
    digest = hashlib.sha256(json.dumps([_VERSION, *settings]).encode())
    for values in (events.offsets, events.items, events.minutes):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:20]


def _cached(name: str, cache_dir: str, compute: Callable[[], Neighbours]) -> Neighbours:
    names = [f"memories/{name}-{part}.npy" for part in Neighbours._fields]
    known = [cache.find_array(cache_dir, one) for one in names]
    if all(values is not None for values in known):
        return Neighbours(*known)  # type: ignore[arg-type]
    table = compute()
    for one, values in zip(names, table, strict=True):
        cache.save_array(cache_dir, one, values)
    return table


def scale_of(table: Neighbours) -> float:
    """The mean over the classes that have neighbours of their highest likeness; 1 without any."""
    highest = table.likeness.max(axis=1, initial=0.0)
    return float(highest[highest > 0].mean()) if highest.any() else 1.0


def scaled(table: Neighbours) -> Neighbours:
    """The table with a mean highest likeness of 1: gates of different data begin alike."""
    return table._replace(likeness=table.likeness / np.float32(scale_of(table)))
