"""Baselines for a trained model: popularity, and nearest neighbours of items.

Both rank the model's users and catalogue by the model's evaluation code. Neither reads held-out
items.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from tssr_jax.data_pipeline.counts import training_counts
from tssr_jax.data_pipeline.input_pipeline import (
    HELD_OUT,
    NOTHING_TO_TRAIN_ON,
    held_out_items,
    users_in_chunks,
)
from tssr_jax.data_pipeline.store import SequenceStore
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.errors import UserError
from tssr_jax.evaluation.ranking import Scorer
from tssr_jax.evaluation.top_k import popularity_scorer
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.run import Run

_ITEMS_AT_A_TIME = 1_024
# Equal similarities are ordered by popularity, whose share of a score is at most this.
_POPULARITY_SHARE = 1e-6


def learn_baseline(run: Run, kind: str) -> tuple[Any, Scorer]:
    """A baseline's parameters, from the training data, and its scorer.

    Args:
      run: data and configuration; `config.baseline` has the settings of "item_knn".
      kind: "popularity" or "item_knn".

    Raises:
      UserError: if there is nothing to train on.
    """
    config, num_items = run.config, run.data.num_items
    settings = config.baseline
    counts = training_counts(run.sequences, config, num_items)
    if not counts.any():
        raise UserError(NOTHING_TO_TRAIN_ON)
    if kind == "popularity":
        return counts, popularity_scorer(run.model.classes)
    neighbours, likeness = item_neighbours(
        run.sequences,
        num_items,
        settings.neighbours,
        settings.shrinkage,
        held_out=held_out_items(config, num_items),
    )
    params = {
        "neighbours": neighbours,
        "likeness": likeness,
        "popularity": (_POPULARITY_SHARE * counts / counts.max()).astype(np.float32),
    }
    return params, item_knn_scorer(run.model.classes, settings.decay)


def item_neighbours(
    store: SequenceStore,
    num_items: int,
    number: int,
    shrinkage: float,
    *,
    held_out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The items that are most similar to each item, by the users who have both in training.

    `n_ij / (sqrt(n_i n_j) + shrinkage)`, n counting users (Sarwar et al., WWW 2001; shrinkage as in
    Ferrari Dacrema et al., RecSys 2019). An item is not its own neighbour.

    Args:
      store: the sequences.
      num_items: size of the catalogue.
      number: number of neighbours that are kept; others count as dissimilar.
      shrinkage: added to the denominator.
      held_out: bool [num_items + 1], items that training does not see; None is none.

    Returns:
      Classes int32 [num_items + 1, number], and their similarities float32; 0 where there are
      fewer.
    """
    users_of = _training_matrix(store, num_items, held_out).tocsc()
    counts = np.asarray(users_of.sum(axis=0)).reshape(-1)
    number = min(number, num_items)
    neighbours = np.zeros((num_items + 1, number), np.int32)
    likeness = np.zeros((num_items + 1, number), np.float32)
    for start in range(0, num_items + 1, _ITEMS_AT_A_TIME):
        # Pairs of items that some user has both of; all other pairs are dissimilar.
        pairs = (users_of[:, start : start + _ITEMS_AT_A_TIME].T @ users_of).tocsr()
        pairs.sort_indices()
        for item, (first, end) in enumerate(itertools.pairwise(pairs.indptr), start):
            others, both = pairs.indices[first:end], pairs.data[first:end]
            alike = both / (np.sqrt(counts[item] * counts[others]) + shrinkage)
            alike[others == item] = 0.0
            best = np.argsort(-alike, kind="stable")[:number]
            neighbours[item, : best.size] = others[best]
            likeness[item, : best.size] = alike[best]
    return neighbours, likeness


def item_knn_scorer(catalogue: Catalogue, decay: float) -> Scorer:
    """Scores a class by its summed similarity to the window's items, weighted by age.

    Its parameters are "neighbours" and "likeness" from `item_neighbours`, and "popularity"
    [num_classes], which is added to the scores.

    Args:
      catalogue: not cut over devices.
      decay: weight of an item relative to the next newer one.
    """

    def scorer(
        params: Mapping[str, jax.Array], batch: Mapping[str, Any], _: Any
    ) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        def score(windows: jax.Array) -> jax.Array:
            age = jnp.arange(windows.shape[1])[::-1]
            weights = jnp.where(windows > 0, jnp.power(decay, age), 0.0)
            shares = weights[..., None] * params["likeness"][windows]
            rows = jnp.arange(windows.shape[0])[:, None, None]
            scores = jnp.zeros((windows.shape[0], catalogue.num_classes))
            return scores.at[rows, params["neighbours"][windows]].add(shares) + params["popularity"]

        return batch["item_sequence"], score

    return scorer


def _training_matrix(
    store: SequenceStore, num_items: int, held_out: np.ndarray | None
) -> scipy.sparse.csr_matrix:
    """Which user has which item in training, float32 [num_users, num_items + 1]."""
    ends = store.lengths - HELD_OUT["train"]
    longest = int(ends.max())
    parts = []
    for users in users_in_chunks(np.arange(ends.size), longest):
        windows = store.rows(users).windows(tf.constant(ends[users.numpy()]), longest).numpy()
        if held_out is not None:
            windows[held_out[windows]] = 0
        places, columns = np.nonzero(windows)
        items = windows[places, columns]
        shape = (len(windows), num_items + 1)
        parts.append(
            scipy.sparse.csr_matrix((np.ones(items.size, np.float32), (places, items)), shape)
        )
    matrix = scipy.sparse.vstack(parts).tocsr()
    matrix.data[:] = 1.0  # an item counts once, however often a user took it
    return matrix
