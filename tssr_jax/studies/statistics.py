"""Confidence intervals and paired tests over users, by the bootstrap (Efron and Tibshirani, 1993).

Users are what is drawn again: a metric of one user is the mean over a variant's seeds, so that
every user counts once however many seeds there are.
"""

from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A mean over users with its 95% percentile interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """A mean of paired differences with its 95% interval, and the two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float


def estimate(values: np.ndarray, seed: int = 0) -> Estimate:
    """Of values float [num_users].

    Raises:
      ValueError: if there are none.
    """
    means = resampled_means(values, seed)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high))


def paired_difference(values: np.ndarray, others: np.ndarray, seed: int = 0) -> Difference:
    """Of `values - others`, both float [num_users] of the same users.

    The p-value is twice the share of resampled means on the other side of 0 (ties count as half),
    plus one of all resamples: never 0.

    Raises:
      ValueError: if they are not as many.
    """
    if values.shape != others.shape:
        raise ValueError(f"{values.size} users can't be paired with {others.size}")
    differences = values - others
    means = resampled_means(differences, seed)
    low, high = np.quantile(means, (0.025, 0.975))
    below = (means < 0).mean() + (means == 0).mean() / 2
    p = min(1.0, 2 * min(below, 1 - below) + 1 / RESAMPLES)
    return Difference(float(differences.mean()), float(low), float(high), float(p))


def resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Means of RESAMPLES samples with replacement, each as large as `values`.

    How often each distinct value is drawn is multinomial: there are few of them, however many
    users.
    """
    if not values.size:
        raise ValueError("there is nothing to draw from")
    distinct, counts = np.unique(np.round(values, 12), return_counts=True)
    generator = np.random.default_rng(seed)
    drawn = np.empty(RESAMPLES)
    at_a_time = max(1, 2**24 // distinct.size)
    for start in range(0, RESAMPLES, at_a_time):
        number = min(at_a_time, RESAMPLES - start)
        times = generator.multinomial(values.size, counts / values.size, size=number)
        drawn[start : start + number] = times @ distinct / values.size
    return drawn


def holm(p_values: list[float]) -> list[float]:
    """Adjusted for as many comparisons (Holm, 1979), in the given order."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = highest
    return adjusted.tolist()
