"""Confidence intervals and paired tests, by the bootstrap (Efron and Tibshirani, 1993).

Users are resampled, jointly for all variants, and so are the seeds of each variant: results should
hold for other users and for other trainings. A user's metric is the mean over the drawn seeds, so
that every user counts once, whatever the number of seeds. (Resampling n seeds shows (n - 1) / n of
the variance between trainings; one seed shows none.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A mean over users and seeds with its 95% percentile interval."""

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
    """Estimates the mean of values float [num_seeds, num_users].

    Raises:
      ValueError: if there are none.
    """
    [means] = resampled_means([values], seed)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high))


def paired_difference(values: np.ndarray, others: np.ndarray, seed: int = 0) -> Difference:
    """Compares two variants' values, float [num_seeds, num_users] of the same users.

    Seeds are not paired, and their numbers may differ. The p-value is twice the share of resampled
    means on the other side of 0 (ties count as half), plus 1 / RESAMPLES, so that it is never 0.

    Raises:
      ValueError: if the numbers of users differ.
    """
    some, more = values.shape[1], others.shape[1]
    if some != more:
        raise ValueError(f"{some} users can't be paired with {more}")
    of_values, of_others = resampled_means([values, others], seed)
    # Equal to the last digit where nothing differs, whatever the order of the sums.
    means = np.round(of_values - of_others, 12)
    low, high = np.quantile(means, (0.025, 0.975))
    below = (means < 0).mean() + (means == 0).mean() / 2
    p = min(1.0, 2 * min(below, 1 - below) + 1 / RESAMPLES)
    return Difference(float(values.mean() - others.mean()), float(low), float(high), float(p))


def resampled_means(variants: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Means of RESAMPLES samples with replacement, float [len(variants), RESAMPLES].

    The numbers of draws of distinct columns are multinomial. There are fewer distinct columns than
    users, because most users gain nothing in any training.

    Args:
      variants: for each variant, values float [num_seeds, num_users] of the same users.
      seed: seed of the random draws.
    """
    values = np.concatenate(variants)
    num_users = values.shape[1]
    if not values.size:
        raise ValueError("there is nothing to draw from")
    distinct, counts = np.unique(np.round(values, 12), axis=1, return_counts=True)
    generator = np.random.default_rng(seed)
    ends = np.cumsum([len(own) for own in variants])[:-1]
    drawn = np.empty((len(variants), RESAMPLES))
    at_a_time = max(1, 2**24 // counts.size)
    for start in range(0, RESAMPLES, at_a_time):
        number = min(at_a_time, RESAMPLES - start)
        times = generator.multinomial(num_users, counts / num_users, size=number)
        means = times @ distinct.T / num_users
        for i, own in enumerate(np.split(means, ends, axis=1)):
            seeds = generator.integers(own.shape[1], size=own.shape)
            drawn[i, start : start + number] = np.take_along_axis(own, seeds, axis=1).mean(axis=1)
    return drawn


def holm(p_values: list[float]) -> list[float]:
    """P-values adjusted for the number of comparisons (Holm, 1979), in the given order."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = highest
    return adjusted.tolist()
