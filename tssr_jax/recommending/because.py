"""Because of which items of a history the memories speak for an item."""

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
    place: int,
) -> tuple[Reason, ...]:
    """See `Recommender.because`; `place` is the class of the item.

    A memory of neighbours adds `q exp(r c) log(1 + k m)` to the item's score (see `models.recall`),
    where m is a sum over the history's items. Each item's reason is its share of that sum.
    """
    if memories is None:
        return ()
    newest = slice(-model.max_length, None)
    own = {"item_sequence": known.classes[newest], "times": known.minutes[newest]}
    batch = {name: np.array([values], np.int32) for name, values in own.items()}
    recalled = recall(model, params, batch, memories)
    assert recalled is not None
    rows, trust = np.asarray(recalled.items[0]), recalled.trust
    factors = np.asarray(by_frequency(model, params, memories).factors[:, place])
    found = []
    for i, name in enumerate(model.memory):
        if name not in memories.tables:
            continue
        classes, likeness = (np.asarray(values) for values in memories.tables[name])
        alike = np.where(classes[rows] == place, likeness[rows], 0.0).sum(axis=1)
        shares = np.asarray(recalled.weights[0]) * alike
        total = factors[i] * trust.weights[0, i] * np.log1p(trust.sharpness[0, i] * shares.sum())
        for of in np.flatnonzero(shares):
            title, share = items.titles[rows[of] - 1], float(total * shares[of] / shares.sum())
            found.append(Reason(items.ids[rows[of] - 1], title, name, share))
    return tuple(sorted(found, key=lambda reason: -reason.score))
