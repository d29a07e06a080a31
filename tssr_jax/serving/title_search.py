"""Finds items by words of their titles."""

import numpy as np
import polars as pl

from tssr_jax.recommending.items import Items


class TitleSearch:
    """Finds items whose title or id has all words of a query, in order of training frequency.

    Args:
      items: the catalogue.
    """

    def __init__(self, items: Items):
        order = np.argsort(-items.counts[1:], kind="stable")
        self._classes = order + 1
        texts = pl.Series(
            [f"{title} {item}" for title, item in zip(items.titles, items.ids, strict=True)]
        )
        self._texts = texts.gather(order).str.to_lowercase()

    def __call__(self, query: str, limit: int) -> list[int]:
        """Classes of up to `limit` items; none for a query without words."""
        words = list(dict.fromkeys(query.lower().split()))
        if not words:
            return []
        found = self._texts.str.contains(words[0], literal=True)
        for word in words[1:]:
            found &= self._texts.str.contains(word, literal=True)
        places = found.arg_true().head(limit).to_numpy()
        return [int(place) for place in self._classes[places]]
