"""Because of which items of a history the memories speak for other items."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from tssr_jax.memory.scores import Memories
from tssr_jax.models.recall import by_frequency, recall
from tssr_jax.models.tssr import TSSR
from tssr_jax.parallel.devices import exactly
from tssr_jax.recommending.items import Items, KnownHistory
from tssr_jax.recommending.results import Reason

_recall = jax.jit(exactly(recall), static_argnums=0)
_by_frequency = jax.jit(exactly(by_frequency), static_argnums=0)


def reasons(  # noqa: PLR0917
    model: TSSR,
    params: Any,
    memories: Memories | None,
    items: Items,
    known: KnownHistory,
    places: Sequence[int],
) -> tuple[tuple[Reason, ...], ...]:
    """See `Recommender.because`; `places` are the classes of the items.

    A memory of neighbours adds `q exp(r c) log(1 + k m)` to an item's score (see `models.recall`),
    where m is a sum over the history's items. Each item's reason is its share of that sum.
    """
    if memories is None or not known.classes:
        return ((),) * len(places)
    # One program for all lengths: padding on the left counts for nothing.
    length = model.max_length
    own = {"item_sequence": known.classes[-length:], "times": known.minutes[-length:]}
    fill = (length - len(own["times"]), 0)
    batch = {name: np.pad(np.array(x, np.int32), fill)[None] for name, x in own.items()}
    recalled = _recall(model, params, batch, memories)
    assert recalled is not None
    rows, trust = np.asarray(recalled.items[0]), recalled.trust
    factors = np.asarray(_by_frequency(model, params, memories).factors)[:, np.array(places, int)]
    found: list[list[Reason]] = [[] for _ in places]
    for i, name in enumerate(model.memory):
        if name not in memories.tables:
            continue
        weights = np.asarray(recalled.weights_of(name)[0])
        classes, likeness = (np.asarray(values)[rows] for values in memories.tables[name])
        sharpness, weight = float(trust.sharpness[0, i]), float(trust.weights[0, i])
        for reasons_of, place, factor in zip(found, places, factors[i], strict=True):
            shares = weights * np.where(classes == place, likeness, 0.0).sum(axis=1)
            total = factor * weight * np.log1p(sharpness * shares.sum())
            for of in np.flatnonzero(shares):
                item, share = rows[of] - 1, float(total * shares[of] / shares.sum())
                reasons_of.append(Reason(items.ids[item], items.titles[item], name, share))
    return tuple(tuple(sorted(own, key=lambda reason: -reason.score)) for own in found)
