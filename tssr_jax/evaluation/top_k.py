"""The best items of each user: exact, over the whole catalogue, seen items left out."""

from typing import Any

import jax
import jax.numpy as jnp

from tssr_jax.models.apply import score
from tssr_jax.models.content import Features
from tssr_jax.models.side import NO_SIDE, Side
from tssr_jax.models.tssr import TSSR
from tssr_jax.parallel import collectives
from tssr_jax.parallel.catalogue import Catalogue


def top_k(  # noqa: PLR0917
    model: TSSR,
    params: Any,
    item_sequence: jax.Array,
    k: int,
    features: Features = None,
    excluded: jax.Array | None = None,
    times: jax.Array | None = None,
    *,
    side: Side = NO_SIDE,
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
      side: as `score` reads it.

    Returns:
      Items int32 [batch, k] and their scores; item 0, score -inf where fewer compete.
    """
    if excluded is None:
        excluded = seen_items(item_sequence)
    scores = score(model, params, item_sequence, features, times, side=side)
    return best_classes(scores, excluded, k, model.classes)


def seen_items(item_sequence: jax.Array, answers: jax.Array | None = None) -> jax.Array:
    """Distinct items of each history without the answer, int [batch, length]; -1 elsewhere."""
    ordered = jnp.sort(item_sequence, axis=1)
    first = jnp.diff(ordered, axis=1, prepend=0) > 0
    counts = first if answers is None else first & (ordered != answers[:, None])
    return jnp.where(counts, ordered, -1)


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
