"""Which items have the same words in their texts: the semantic memory.

    likeness_ij = cosine(v_i, v_j)^0.7

v are TF-IDF vectors over words and pairs of neighbouring words (Salton and Buckley, 1988). It needs
no interactions, and so covers items that nobody took yet.

A term that n texts have makes n^2 products. In a large catalogue the most frequent terms ("with",
"and") would take hours, though they have the smallest weights. The products leave out the most
frequent terms until `MOST_PRODUCTS` are left for each text, so time and memory grow with the number
of texts.
"""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse

from tssr_jax.engine import IN_PROCESS, Engine
from tssr_jax.memory.scores import Neighbours

_WORD = re.compile(r"\w+")
# A term that a single text has makes no two texts alike.
_LEAST_TEXTS = 2
# Products of terms for each text. Amazon toys have 1,400 and MovieLens-1M 1,900: all are computed.
MOST_PRODUCTS = 30_000
# An exponent below 1 raises small cosines: several weakly similar items of a history then count
# more than one very similar item.
_POWER = 0.7
_ITEMS_AT_A_TIME = 512


def word_neighbours(
    texts: Sequence[str],
    number: int,
    num_weighed: int | None = None,
    engine: Engine = IN_PROCESS,
) -> Neighbours:
    """The texts that are most like each text.

    Args:
      texts: text of item i at index i - 1; an item without words has no neighbours.
      number: how many neighbours are kept.
      num_weighed: how many texts, the first ones, tell how rare a term is; by default all. Others
        are compared by the terms that these have.
      engine: compares the texts, some at a time.
    """
    number = min(number, len(texts))
    neighbours = np.zeros((len(texts) + 1, number), np.int32)
    likeness = np.zeros((len(texts) + 1, number), np.float32)
    starts = range(0, len(texts), _ITEMS_AT_A_TIME)
    weighed = len(texts) if num_weighed is None else num_weighed
    make = functools.partial(_Comparer, texts, number, weighed)
    for index, table in engine.map(make, starts):
        some = slice(starts[index] + 1, starts[index] + 1 + len(table.classes))
        neighbours[some], likeness[some] = table
    return Neighbours(neighbours, likeness)


class _Comparer:
    """A worker: neighbours of the texts from one on, `_ITEMS_AT_A_TIME` of them."""

    def __init__(self, texts: Sequence[str], number: int, num_weighed: int):
        self._number, self._vectors = number, _vectors(texts, num_weighed)
        self._others = self._vectors.T.tocsr()  # [terms, texts]

    def __call__(self, start: int) -> Neighbours:
        alike = (self._vectors[start : start + _ITEMS_AT_A_TIME] @ self._others).tocsr()
        neighbours = np.zeros((alike.shape[0], self._number), np.int32)
        likeness = np.zeros((alike.shape[0], self._number), np.float32)
        for row, (first, end) in enumerate(itertools.pairwise(alike.indptr)):
            found, cosines = alike.indices[first:end], alike.data[first:end]
            other = found != start + row
            found, cosines = found[other], cosines[other]
            if found.size > self._number:  # sort only what may be kept
                least = np.partition(cosines, -self._number)[-self._number]
                found, cosines = found[cosines >= least], cosines[cosines >= least]
            best = np.lexsort((found, -cosines))[: self._number]
            neighbours[row, : best.size] = found[best] + 1
            likeness[row, : best.size] = cosines[best] ** _POWER
        return Neighbours(neighbours, likeness)


def _vectors(texts: Sequence[str], num_weighed: int) -> scipy.sparse.csr_array:
    """TF-IDF vectors of norm 1, float32 [texts, terms]; zeros for a text without shared terms.

    Terms that would make too many products count in the norm only.
    """
    numbers: dict[str, int] = {}
    terms, counts, ends = list[int](), list[int](), [0]
    for text in texts:
        for term, count in Counter(_terms(text)).items():
            terms.append(numbers.setdefault(term, len(numbers)))
            counts.append(count)
        ends.append(len(terms))
    columns = np.array(terms, np.int64)
    texts_with = np.bincount(columns[: ends[num_weighed]], minlength=len(numbers))
    rarity = np.log((1 + num_weighed) / (1 + texts_with)) + 1.0
    rarity[texts_with < _LEAST_TEXTS] = 0.0
    weights = np.array(counts) * rarity[columns]
    squares = np.add.reduceat(np.append(weights, 0.0) ** 2, ends[:-1]) * (np.diff(ends) > 0)
    norms = np.sqrt(np.where(squares > 0, squares, 1.0))
    weights = (weights / np.repeat(norms, np.diff(ends))).astype(np.float32)
    weights[_too_frequent(texts_with, num_weighed)[columns]] = 0.0
    shape = (len(texts), max(1, len(numbers)))
    vectors = scipy.sparse.csr_array((weights, columns, np.array(ends)), shape)
    vectors.eliminate_zeros()
    return vectors


def _too_frequent(texts_with: np.ndarray, num_texts: int) -> np.ndarray:
    """The most frequent terms, as many as have to go for `MOST_PRODUCTS`, bool [terms].

    Args:
      texts_with: int [terms], how many texts have each term.
      num_texts: number of these texts.
    """
    order = np.argsort(texts_with, kind="stable")
    products = np.cumsum(texts_with[order].astype(np.float64) ** 2)
    too_frequent = np.zeros(texts_with.size, bool)
    too_frequent[order] = products > MOST_PRODUCTS * num_texts
    return too_frequent


def _terms(text: str) -> Iterator[str]:
    """Words, and pairs of neighbouring words."""
    words = _WORD.findall(text.lower())
    yield from words
    yield from (f"{first} {second}" for first, second in itertools.pairwise(words))
