"""Results of each variant of a study: estimates, comparisons, costs."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tssr_jax.evaluation.evaluate import PER_USER_FILE
from tssr_jax.studies.designs import Study
from tssr_jax.studies.statistics import (
    Difference,
    Estimate,
    estimate,
    holm,
    paired_difference,
)
from tssr_jax.studies.trial import Trial

METRICS = ("ndcg@10", "recall@10")
SPLIT = "test"


class Comparison(NamedTuple):
    """A paired difference, and its p-value adjusted for the number of variants (Holm)."""

    difference: Difference
    adjusted_p: float


class Finding(NamedTuple):
    """One variant, all its seeds.

    Attributes:
      name: of the variant.
      seeds: how many.
      estimates: by metric, over users and seeds.
      spread: by metric, the standard deviation over seeds; NaN with one.
      comparisons: by metric, with the study's first variant; None for the first variant itself, and
        if the users differ.
      cost: means over seeds of what `studies.worker` measured.
      lists: means over seeds of the metrics of lists.
    """

    name: str
    seeds: int
    estimates: dict[str, Estimate]
    spread: dict[str, float]
    comparisons: dict[str, Comparison | None]
    cost: dict[str, float]
    lists: dict[str, float]


def find(study: Study, trials: Sequence[Trial]) -> list[Finding]:
    """Results of each variant that has trials, in the study's order."""
    # The order is the study's, not the order of the trials: a variant's first seed may be missing.
    by_variant: dict[str, list[Trial]] = {variant.name: [] for variant in study.variants}
    for trial in trials:
        by_variant.setdefault(trial.variant, []).append(trial)
    by_variant = {name: own for name, own in by_variant.items() if own}
    users = {name: {t.config.seed: per_user(t) for t in own} for name, own in by_variant.items()}
    comparisons = {m: _compare(users, study.variants[0].name, m) for m in METRICS}
    return [
        _finding(name, own, list(users[name].values()), {m: comparisons[m][name] for m in METRICS})
        for name, own in by_variant.items()
    ]


def _compare(
    users: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]], first: str, metric: str
) -> dict[str, Comparison | None]:
    """Each variant with the first one."""
    values = {n: np.stack([gains(one, metric) for one in own.values()]) for n, own in users.items()}
    differences = {
        name: paired_difference(values[name], values[first])
        for name in users
        if first in users and name != first and _same_users(users[name], users[first])
    }
    adjusted = holm([difference.p for difference in differences.values()])
    compared = dict(zip(differences, adjusted, strict=True))
    return {
        name: Comparison(differences[name], compared[name]) if name in compared else None
        for name in users
    }


def _finding(
    name: str,
    trials: Sequence[Trial],
    users: Sequence[Mapping[str, np.ndarray]],
    comparisons: dict[str, Comparison | None],
) -> Finding:
    results = [trial.result() or {} for trial in trials]
    estimates, spread = {}, {}
    for metric in METRICS:
        values = np.stack([gains(own, metric) for own in users])
        estimates[metric] = estimate(values)
        of_seeds = values.mean(axis=1)
        spread[metric] = float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else float("nan")
    test = [result["metrics"][SPLIT] for result in results]
    return Finding(
        name,
        len(trials),
        estimates,
        spread,
        comparisons,
        _means([result["cost"] for result in results]),
        _means([{k: v for k, v in own.items() if _is_of_lists(k)} for own in test]),
    )


def per_user(trial: Trial) -> Mapping[str, np.ndarray]:
    """Ranks, answers and histories of each user (`evaluate.evaluate_params` writes them)."""
    with (trial.run / PER_USER_FILE).open("rb") as file, np.load(file) as arrays:
        return dict(arrays)


def gains(users: Mapping[str, np.ndarray], metric: str) -> np.ndarray:
    """A metric "ndcg@K" or "recall@K" of each user, float [num_users]."""
    name, _, cutoff = metric.partition("@")
    ranks = users[f"{SPLIT}_rank"].astype(np.int64)
    inside = ranks < int(cutoff)
    return inside / np.log2(ranks + 2.0) if name == "ndcg" else inside.astype(float)


def _same_users(
    some: Mapping[int, Mapping[str, np.ndarray]], others: Mapping[int, Mapping[str, np.ndarray]]
) -> bool:
    """Whether two variants, by seed, rank the same users.

    Histories are as long with any seed. Answers depend on the seed, which orders ties in time.
    """
    lengths = [users["history"] for users in (*some.values(), *others.values())]
    answers = [
        (some[seed][f"{SPLIT}_answer"], others[seed][f"{SPLIT}_answer"])
        for seed in some.keys() & others.keys()
    ]
    return all(np.array_equal(lengths[0], other) for other in lengths[1:]) and all(
        np.array_equal(one, other) for one, other in answers
    )


def _means(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of the values that all seeds have."""
    names = [name for name in records[0] if all(name in record for record in records)]
    return {name: float(np.mean([record[name] for record in records])) for name in names}


def _is_of_lists(name: str) -> bool:
    return not name.startswith(("recall", "ndcg", "mrr", "num_users", "warm", "cold"))
