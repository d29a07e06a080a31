"""Baselines for a trained model, which learn nothing: popularity, and neighbours of items.

    popularity        training frequency
    month_popularity  training frequency in the newest item's month and the one before
    nearest_texts     words that an item shares with the history's items
    own_items         how often the history has an item
    item_knn          co-occurrence in time with the history's items, and words; where items may be
                      recommended again, also how often the history has them, and users take them
                      again

All rank the model's users and catalogue by the model's evaluation code. None reads held-out items.
Equal scores are ordered by popularity.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from tssr_jax.data_pipeline.counts import training_counts
from tssr_jax.data_pipeline.input_pipeline import NOTHING_TO_TRAIN_ON
from tssr_jax.data_pipeline.splits import MINUTES_PER_DAY
from tssr_jax.data_pipeline.windows import held_out_items
from tssr_jax.errors import UserError
from tssr_jax.evaluation.ranking import Scorer
from tssr_jax.memory import repeats
from tssr_jax.memory.co_occurrence import Events, training_events
from tssr_jax.memory.repeats import repeat_table
from tssr_jax.memory.scores import Neighbours, history_weights, joined, neighbour_scores
from tssr_jax.memory.tables import co_occurrence_table, word_table
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.run import Run

_MONTH = 30 * MINUTES_PER_DAY
# Equal scores are ordered by popularity, whose share of a score is at most this.
_POPULARITY_SHARE = 1e-6
# More than any popularity's share, and so small that float32 tells the sums of both apart.
_OWN_ITEM = np.float32(2 * _POPULARITY_SHARE)
# How much item-kNN adds of `memory.repeats` (docs/results/repeats.md).
_REPEATS = np.float32(0.3)


def learn_baseline(run: Run, kind: str) -> tuple[Any, Scorer]:
    """A baseline's parameters, from the training data, and its scorer.

    Args:
      run: data and configuration; `config.memory` has the settings of "item_knn".
      kind: one of the names in the module's docstring.

    Raises:
      UserError: if there is nothing to train on.
    """
    config, num_items = run.config, run.data.num_items
    counts = training_counts(run.sequences, config, num_items)
    if not counts.any():
        raise UserError(NOTHING_TO_TRAIN_ON)
    if kind == "popularity":
        return counts, popularity_scorer(run.model.classes)
    share = (_POPULARITY_SHARE * counts / counts.max()).astype(np.float32)
    settings = config.memory
    params: dict[str, Any] = {"popularity": share}
    if kind == "own_items":
        every = np.arange(num_items + 1, dtype=np.int32)[:, None]
        params["neighbours"] = Neighbours(every, np.where(every > 0, _OWN_ITEM, np.float32(0)))
        return params, neighbour_scorer(run.model.classes, decay=1.0)
    if kind == "nearest_texts":
        params["neighbours"] = word_table(run.data.texts, settings, config.data.cache_dir)
        return params, neighbour_scorer(run.model.classes, settings.decay)
    events = training_events(run.sequences, held_out_items(config, num_items))
    if kind == "month_popularity":
        params["months"], params["first"] = monthly_counts(events, num_items)
        return params, month_popularity_scorer()
    params["neighbours"] = item_neighbours(events, run.data.texts, settings, config.data.cache_dir)
    if config.evaluate.keep_seen:
        table = repeat_table(events, num_items)
        params["again"] = table._replace(likeness=_REPEATS * table.likeness)
    return params, neighbour_scorer(run.model.classes, settings.decay)


def item_neighbours(
    events: Events, texts: list[str], settings: ml_collections.ConfigDict, cache_dir: str
) -> Neighbours:
    """Neighbours by co-occurrence and by words.

    Args:
      events: training interactions.
      texts: text of item i at index i - 1.
      settings: section `memory` of the configuration.
      cache_dir: of prepared data.
    """
    taken = co_occurrence_table(events, len(texts), settings, cache_dir)
    if not settings.words:
        return taken
    return joined(taken, word_table(texts, settings, cache_dir), settings.words)


def neighbour_scorer(catalogue: Catalogue, decay: float) -> Scorer:
    """Scores a class by its likeness to the items of the history's window.

    Its parameters are "neighbours", a `Neighbours`, and "popularity" [num_items + 1], which is
    added to the scores. So is "again", if it is there: a `Neighbours` by `memory.repeats`.

    Args:
      catalogue: not cut over devices.
      decay: weight of an item relative to an item one place newer, see `memory.scores`.
    """

    def scorer(
        params: Mapping[str, Any], batch: Mapping[str, Any], _: Any
    ) -> tuple[Any, Callable[[Any], jax.Array]]:
        def score(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
            items, times = rows
            weights = history_weights(items, times, decay)
            scores = neighbour_scores(params["neighbours"], items, weights, catalogue)
            scores += params["popularity"]
            if "again" not in params:
                return scores
            weights = history_weights(items, times, repeats.DECAY)
            return scores + neighbour_scores(params["again"], items, weights, catalogue)

        return (batch["item_sequence"], batch["times"]), score

    return scorer


def popularity_scorer(catalogue: Catalogue) -> Scorer:
    """Gives every user the same scores, which are its parameters, [num_classes]."""

    def scorer(
        popularity: jax.Array, batch: Mapping[str, Any], _: Any
    ) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        places = jnp.minimum(catalogue.classes(), catalogue.num_classes - 1)
        own = jnp.asarray(popularity, jnp.float32)[places]
        return batch["row_mask"], lambda rows: jnp.broadcast_to(own, (len(rows), own.size))

    return scorer


def month_popularity_scorer() -> Scorer:
    """Scores a class by its training frequency around the time of the history's newest item.

    Its parameters are "months" and "first" from `monthly_counts`, and "popularity"
    [num_items + 1], which is added to the scores. Not for a catalogue that is cut over devices.
    """

    def scorer(
        params: Mapping[str, jax.Array], batch: Mapping[str, Any], _: Any
    ) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        def score(newest: jax.Array) -> jax.Array:
            month = newest // _MONTH - params["first"] + 1  # month 0 stands for all before
            month = jnp.clip(month, 1, len(params["months"]) - 1)
            return params["months"][month] + params["months"][month - 1] + params["popularity"]

        return batch["times"][:, -1], score

    return scorer


def monthly_counts(events: Events, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Training frequency by 30 days: float32 [1 + months, num_items + 1], from 1970 on.

    Returns:
      The counts, whose row 0 is empty, and the number of the month of row 1.
    """
    months = events.minutes // _MONTH
    first = months.min()
    counts = np.zeros((months.max() - first + 2, num_items + 1), np.float32)
    np.add.at(counts, (months - first + 1, events.items), 1.0)
    return counts, first
