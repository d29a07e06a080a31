"""Metrics of groups of users: by how long their history is, by how popular their answer is."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tssr_jax.metrics import ranking_metrics

# Upper ends of the groups by length of the history.
HISTORY_ENDS = (4, 8, 16, 32, 64)
POPULARITY_PARTS = 4


class Group(NamedTuple):
    """Some users.

    Attributes:
      name: which ones.
      users: how many.
      ndcg: NDCG@10, the mean over seeds.
      recall: Recall@10, the same.
    """

    name: str
    users: int
    ndcg: float
    recall: float


def group_metrics(seeds: Sequence[Mapping[str, np.ndarray]], split: str) -> dict[str, list[Group]]:
    """Both kinds of groups of one variant.

    Popularity's groups are equal parts of the interactions: the first holds the users whose answer
    is one of the rare items that a quarter of training falls on, and so on; answers that training
    has never seen are a group of their own ("cold").

    Args:
      seeds: of each seed what `evaluate.evaluate_params` writes for each user.
      split: "validation" or "test".
    """
    first = seeds[0]
    by_history = _by_history(first["history"])
    by_popularity = _by_popularity(first[f"{split}_answer"], first["counts"])
    return {
        f"NDCG@10 by {kind}": [_group(name, mask, seeds, split) for name, mask in masks.items()]
        for kind, masks in (("length of history", by_history), ("popularity", by_popularity))
    }


def _by_history(lengths: np.ndarray) -> dict[str, np.ndarray]:
    masks, start = {}, 1
    for end in HISTORY_ENDS:
        masks[f"{start}-{end}"] = (lengths >= start) & (lengths <= end)
        start = end + 1
    masks[f"{start}+"] = lengths >= start
    return {name: mask for name, mask in masks.items() if mask.any()}


def _by_popularity(answers: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    order = np.argsort(counts, kind="stable")
    shares = np.cumsum(counts[order]) / counts.sum()
    part = np.empty(counts.size, np.int64)
    part[order] = np.minimum((shares * POPULARITY_PARTS).astype(np.int64), POPULARITY_PARTS - 1)
    own, cold = part[answers], counts[answers] == 0
    masks = {"cold": cold}
    for i in range(POPULARITY_PARTS):
        edge = {0: " (rare)", POPULARITY_PARTS - 1: " (popular)"}.get(i, "")
        masks[f"part {i + 1} of {POPULARITY_PARTS}{edge}"] = (own == i) & ~cold
    return {name: mask for name, mask in masks.items() if mask.any()}


def _group(
    name: str, mask: np.ndarray, seeds: Sequence[Mapping[str, np.ndarray]], split: str
) -> Group:
    own = [ranking_metrics(seed[f"{split}_rank"][mask]) for seed in seeds]
    return Group(
        name,
        int(mask.sum()),
        float(np.mean([metrics["ndcg@10"] for metrics in own])),
        float(np.mean([metrics["recall@10"] for metrics in own])),
    )
