"""Metrics of groups of users: by length of their history, by popularity and day of the answer."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tssr_jax.evaluation.metrics import ranking_metrics

# Upper ends of the groups by length of the history.
HISTORY_ENDS = (4, 8, 16, 32, 64)
POPULARITY_PARTS = 4


class Group(NamedTuple):
    """Some users.

    Attributes:
      name: which ones.
      users: number of users, mean over seeds.
      ndcg: NDCG@10, mean over the seeds that have such users.
      recall: Recall@10, mean over the seeds that have such users.
    """

    name: str
    users: int
    ndcg: float
    recall: float


def group_metrics(
    seeds: Sequence[Mapping[str, np.ndarray]], split: str, counts: Sequence[np.ndarray]
) -> dict[str, list[Group]]:
    """Metrics of each kind of groups, for one variant.

    Popularity groups are equal parts of the training interactions: the first group has the users
    whose answer is one of the rarest items, which make up a quarter of training, and so on. Answers
    that training has never seen are a separate group ("cold").

    Args:
      seeds: for each seed, the per-user arrays that `evaluate.evaluate_params` writes.
      split: "validation" or "test".
      counts: for each seed, how often training has seen each item. (Held-out items depend on the
        seed.)
    """
    by_history = [_by_history(own["history"]) for own in seeds]
    by_popularity = [
        _by_popularity(own[f"{split}_answer"], seen)
        for own, seen in zip(seeds, counts, strict=True)
    ]
    kinds = {"length of history": by_history, "popularity": by_popularity}
    if all("same_day" in own for own in seeds):  # trials of older versions have none
        kinds["day of the answer"] = [_by_day(own["same_day"]) for own in seeds]
    ranks = [own[f"{split}_rank"] for own in seeds]
    return {
        f"NDCG@10 by {kind}": [
            _group(name, [own[name] for own in masks], ranks)
            for name in masks[0]
            if any(own[name].any() for own in masks)
        ]
        for kind, masks in kinds.items()
    }


def _by_history(lengths: np.ndarray) -> dict[str, np.ndarray]:
    masks, start = {}, 1
    for end in HISTORY_ENDS:
        masks[f"{start}-{end}"] = (lengths >= start) & (lengths <= end)
        start = end + 1
    masks[f"{start}+"] = lengths >= start
    return masks


def _by_day(same: np.ndarray) -> dict[str, np.ndarray]:
    return {"the day of the item before": same, "later": ~same}


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
    return masks


def _group(name: str, masks: Sequence[np.ndarray], ranks: Sequence[np.ndarray]) -> Group:
    own = [
        ranking_metrics(rank[mask]) for rank, mask in zip(ranks, masks, strict=True) if mask.any()
    ]
    return Group(
        name,
        round(float(np.mean([mask.sum() for mask in masks]))),
        float(np.mean([metrics["ndcg@10"] for metrics in own])),
        float(np.mean([metrics["recall@10"] for metrics in own])),
    )
