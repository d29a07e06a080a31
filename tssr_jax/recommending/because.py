"""Because of which items of a history the memories speak for other items."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tssr_jax.memory.scores import Memories
from tssr_jax.models.recall import by_frequency, recall
from tssr_jax.models.tssr import TSSR
from tssr_jax.recommending.items import Items, KnownHistory
from tssr_jax.recommending.results import Reason


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
    newest = slice(-model.max_length, None)
    own = {"item_sequence": known.classes[newest], "times": known.minutes[newest]}
    batch = {name: np.array([values], np.int32) for name, values in own.items()}
    recalled = recall(model, params, batch, memories)
    assert recalled is not None
    rows, weights, trust = np.asarray(recalled.items[0]), recalled.weights[0], recalled.trust
    factors = by_frequency(model, params, memories).factors[:, np.array(places, np.int32)]
    found: list[list[Reason]] = [[] for _ in places]
    for i, name in enumerate(model.memory):
        if name not in memories.tables:
            continue
        classes, likeness = (np.asarray(values)[rows] for values in memories.tables[name])
        sharpness, weight = float(trust.sharpness[0, i]), float(trust.weights[0, i])
        for reasons_of, place, factor in zip(found, places, np.asarray(factors[i]), strict=True):
            shares = np.asarray(weights) * np.where(classes == place, likeness, 0.0).sum(axis=1)
            total = factor * weight * np.log1p(sharpness * shares.sum())
            for of in np.flatnonzero(shares):
                item, share = rows[of] - 1, float(total * shares[of] / shares.sum())
                reasons_of.append(Reason(items.ids[item], items.titles[item], name, share))
    return tuple(tuple(sorted(own, key=lambda reason: -reason.score)) for own in found)
