"""Metrics of recommendation lists beyond accuracy: variety, novelty, popularity.

All are exact over the catalogue. Lists are int [num_users, k], with ids 1..num_items, and 0 where a
list is shorter. Each function names its source.
"""

from collections.abc import Mapping

import numpy as np

# Users whose lists are compared at a time.
_USERS_AT_A_TIME = 2_048


def coverage(lists: np.ndarray, num_items: int) -> float:
    """Share of the catalogue that is in any list (Ge et al., RecSys 2010, "catalog coverage")."""
    return float(np.count_nonzero(times_recommended(lists, num_items)) / num_items)


def gini(lists: np.ndarray, num_items: int) -> float:
    """Gini index of how often items are recommended: 0 is uniform, near 1 is concentrated.

    `sum_j (2 j - n - 1) x_j / (n sum x)`, x ascending, over all n items of the catalogue
    (Castells, Hurley and Vargas, Recommender Systems Handbook, "Novelty and diversity").
    """
    times = np.sort(times_recommended(lists, num_items))
    order = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float((order * times).sum() / (num_items * times.sum()))


def novelty(lists: np.ndarray, counts: np.ndarray) -> float:
    """Mean self-information of what is recommended, in bits: -log2 of an item's share in training.

    (After Zhou et al., PNAS 2010, who take an item's share of users, not of interactions: the
    values differ by a constant of the data.) An item that training never saw counts as seen once.

    Args:
      lists: int [num_users, k], 0 where a list is shorter.
      counts: int [num_items + 1], how often training has seen each item.
    """
    shares = np.maximum(counts, 1) / counts.sum()
    return float(-np.log2(shares[lists[lists > 0]]).mean())


def mean_popularity(lists: np.ndarray, counts: np.ndarray) -> float:
    """Mean over users of the mean count of their items (Yin et al., VLDB 2012, "ARP")."""
    return float(_means(lists, counts).mean())


def popularity_lift(lists: np.ndarray, counts: np.ndarray, history_popularity: float) -> float:
    """How much more popular lists are than the users' histories; 0 is no bias.

    Mean popularity of the lists, divided by the histories' mean popularity, minus 1: the group
    popularity lift of Abdollahpouri et al. (RMSE workshop, RecSys 2019), with all users as a group.

    Args:
      lists: int [num_users, k], 0 where a list is shorter.
      counts: int [num_items + 1], how often training has seen each item.
      history_popularity: mean over users of the mean count of the items of their history.
    """
    return mean_popularity(lists, counts) / history_popularity - 1.0


def diversity(lists: np.ndarray, vectors: np.ndarray) -> float:
    """Mean over users of the mean of 1 - cosine over all pairs of a list (Ziegler, WWW 2005).

    Lists with fewer than two items are left out. A vector of zeros has cosine 0 to all.

    Args:
      lists: int [num_users, k], 0 where a list is shorter.
      vectors: float [num_items + 1, width].
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.where(norms > 0, norms, 1.0)).astype(np.float32)
    total, users = 0.0, 0
    for start in range(0, len(lists), _USERS_AT_A_TIME):
        part = lists[start : start + _USERS_AT_A_TIME]
        present = part > 0
        own = unit[part] * present[..., None]
        # The sum over pairs: half of the square of the sum minus the sum of squares.
        squares = (own**2).sum(axis=(1, 2))
        alike = ((own.sum(axis=1) ** 2).sum(axis=1) - squares) / 2
        sizes = present.sum(axis=1)
        pairs = sizes * (sizes - 1) / 2
        total += float((1.0 - alike[pairs > 0] / pairs[pairs > 0]).sum())
        users += int((pairs > 0).sum())
    return total / users if users else float("nan")


def serendipity(lists: np.ndarray, answers: np.ndarray, expected: np.ndarray) -> float:
    """Share of recommendations that are right and not what popularity would have recommended.

    (Ge et al., RecSys 2010: useful items among the unexpected, over the length of the list.)

    Args:
      lists: int [num_users, k], 0 where a list is shorter.
      answers: int [num_users], the item that each user chose.
      expected: int [num_users, k], each user's most popular items among those not seen.
    """
    right = (lists == answers[:, None]).any(axis=1)
    unexpected = ~(expected == answers[:, None]).any(axis=1)
    return float((right & unexpected).mean() / lists.shape[1])


def times_recommended(lists: np.ndarray, num_items: int) -> np.ndarray:
    """How many lists contain each item, int [num_items]; the first is item 1's."""
    return np.bincount(lists.reshape(-1), minlength=num_items + 1)[1:]


def list_metrics(
    lists: np.ndarray,
    *,
    answers: np.ndarray,
    expected: np.ndarray,
    history_popularity: float,
    counts: np.ndarray,
    spaces: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """Computes all metrics; names end in @k. Skips diversity if no list has two items.

    Args:
      lists: int [num_users, k], 0 where a list is shorter.
      answers: int [num_users], the item that each user chose.
      expected: int [num_users, k], each user's most popular items among those not seen.
      history_popularity: mean over users of the mean count of the items of their history.
      counts: int [num_items + 1], how often training has seen each item.
      spaces: item vectors float [num_items + 1, width] for diversity, by name of the space.
    """
    num_items = counts.size - 1
    values = {
        "coverage": coverage(lists, num_items),
        "gini": gini(lists, num_items),
        "novelty": novelty(lists, counts),
        "serendipity": serendipity(lists, answers, expected),
        "popularity": mean_popularity(lists, counts),
        "popularity_lift": popularity_lift(lists, counts, history_popularity),
    }
    if (lists > 0).sum(axis=1).max() > 1:
        values |= {f"diversity_{name}": diversity(lists, own) for name, own in spaces.items()}
    return {f"{name}@{lists.shape[1]}": value for name, value in values.items()}


def _means(lists: np.ndarray, counts: np.ndarray) -> np.ndarray:
    present = lists > 0
    return (counts[lists] * present).sum(axis=1) / np.maximum(present.sum(axis=1), 1)
