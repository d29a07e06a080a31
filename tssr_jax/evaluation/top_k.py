"""The best items of each user: exact, over the whole catalogue, seen items left out."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from tssr_jax.evaluation.ranking import (
    Ranker,
    RankingBatches,
    Scorer,
    in_own_order,
    make_scores_step,
    seen_items,
)
from tssr_jax.models.apply import score
from tssr_jax.models.content import Features
from tssr_jax.models.tssr import TSSR
from tssr_jax.parallel import collectives
from tssr_jax.parallel.catalogue import Catalogue

if TYPE_CHECKING:
    from tssr_jax.run import Run


def top_k(  # noqa: PLR0917
    model: TSSR,
    params: Any,
    item_sequence: jax.Array,
    k: int,
    features: Features = None,
    excluded: jax.Array | None = None,
    times: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The k best items of each history, best first; ties go to the lower id.

        items, scores = top_k(model, params, item_sequence, 10, features)

    Args:
      model: the module, whose catalogue is whole.
      params: its parameters.
      item_sequence: int [batch, length], oldest first, left padded with 0.
      k: at most the number of items.
      features: of the items, as `encode` takes them.
      excluded: int [batch, width], items that do not compete, filled up with -1; by default the
        items of `item_sequence`.
      times: int [batch, length], minutes, as `score` reads them.

    Returns:
      Items int32 [batch, k] and their scores; item 0, score -inf where fewer compete.
    """
    if excluded is None:
        excluded = seen_items(item_sequence)
    scores = score(model, params, item_sequence, features, times)
    return best_classes(scores, excluded, k, model.classes)


def competing_scores(scores: jax.Array, excluded: jax.Array, catalogue: Catalogue) -> jax.Array:
    """Scores [rows, shard_classes], -inf for padding and for the classes that are excluded."""
    classes = catalogue.classes()
    exists = (classes > 0) & (classes < catalogue.num_classes)
    return catalogue.without(jnp.where(exists, scores, -jnp.inf), excluded)


def best_classes(
    scores: jax.Array, excluded: jax.Array, k: int, catalogue: Catalogue
) -> tuple[jax.Array, jax.Array]:
    """The k classes of each row with the highest scores, best first; ties go to the lower id.

    Args:
      scores: [group_rows, shard_classes].
      excluded: int [group_rows, width], the classes that do not compete; -1 is none.
      k: at most the number of items.
      catalogue: how the classes lie on the devices.

    Returns:
      Classes int32 [group_rows, k] and their scores; class 0, score -inf where fewer compete. All
      devices that share a catalogue get equal results.
    """
    scores = competing_scores(scores, excluded, catalogue)
    values, places = jax.lax.top_k(scores, min(k, catalogue.shard_classes))
    found = catalogue.classes()[places]
    if catalogue.axis is not None:
        values = collectives.all_gather(values, catalogue.axis, 1)
        found = collectives.all_gather(found, catalogue.axis, 1)
        values, places = jax.lax.top_k(values, k)
        found = jnp.take_along_axis(found, places, axis=1)
    return jnp.where(jnp.isfinite(values), found, 0), values


def make_top_k_step(model: TSSR, k: int, scorer: Scorer | None = None) -> Callable[..., jax.Array]:
    """Returns the step of one device, `(params, batch, content) -> classes`.

    Each device takes its rows of the batch, and returns the lists of the whole batch, int32
    [batch, k], -1 in padding rows.

    Args:
      model: tells how batch and catalogue lie on the devices.
      k: length of a list.
      scorer: by default the model's.
    """
    catalogue = model.classes

    def lists(_: Any, scores: jax.Array, excluded: jax.Array) -> jax.Array:
        return best_classes(scores, excluded, k, catalogue)[0]

    return make_scores_step(model, lists, ("excluded",), catalogue.own_rows, scorer)


def popularity_scorer(catalogue: Catalogue) -> Scorer:
    """Gives every user the same scores, which are its parameters, [num_classes]."""

    def scorer(
        popularity: jax.Array, batch: Mapping[str, Any], _: Any
    ) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        places = jnp.minimum(catalogue.classes(), catalogue.num_classes - 1)
        own = jnp.asarray(popularity, jnp.float32)[places]
        return batch["row_mask"], lambda rows: jnp.broadcast_to(own, (len(rows), own.size))

    return scorer


class TopK:
    """Lists of the best items, for any parameters.

    Args:
      run: data, content, model and devices.
      ranker: gives the scorer and the content.
      k: length of a list; at most the number of items is used.
    """

    def __init__(self, run: "Run", ranker: Ranker, k: int):
        self._ranker = ranker
        self._step = run.devices.run(
            make_top_k_step(run.model, min(k, run.data.num_items), ranker.scorer),
            inputs=ranker.inputs,
        )

    def __call__(
        self, params: Any, batches: RankingBatches, on_batch: Callable[[], None] = lambda: None
    ) -> np.ndarray:
        """Each user's list, int32 [num_users, k], best first; 0 where no item is left."""
        content = self._ranker.content(params)
        lists = []
        for batch in batches:
            lists.append(np.asarray(self._step(params, batch, content)))
            on_batch()
        everyone = np.concatenate(lists)
        return in_own_order(everyone[everyone[:, 0] >= 0], batches)
