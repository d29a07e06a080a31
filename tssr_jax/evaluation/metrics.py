"""Full-catalogue ranks, and metrics of them (docs/reference/method.md, "Evaluation protocol")."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tssr_jax.parallel.catalogue import Catalogue

CUTOFFS = (5, 10, 20, 50, 100)
# The rank of an answer that can't be recommended.
MISSED = 2**30


def competitors_above(
    scores: jax.Array, answers: jax.Array, excluded: jax.Array, catalogue: Catalogue
) -> jax.Array:
    """Counts for each answer the classes of this device that rank above it.

    The sum over the devices that share a catalogue is the answer's 0-based rank among all competing
    classes: the number of competitors whose score is not lower (a tie, or a NaN, counts against the
    answer). This needs no sort.

    What does not compete, and the answer itself, is masked. (They are not counted and subtracted: a
    compiler may compute a score twice with different rounding, and the count would be off by one.)

    Args:
      scores: [group_rows, shard_classes]; rows and classes are those of one device unless the
        catalogue is cut over several.
      answers: int [group_rows].
      excluded: int [group_rows, width], the classes that do not compete (seen items, the padding
        class), filled up with -1.
      catalogue: how the classes lie on the devices.

    Returns:
      int32 [group_rows].
    """
    own = catalogue.pick(scores, answers)[:, None]
    masked = catalogue.marks(jnp.concatenate([excluded, answers[:, None]], axis=1))
    competes = (catalogue.classes() < catalogue.num_classes) & ~masked
    return (~(scores < own) & competes).sum(axis=1, dtype=jnp.int32)


def popularity_ranks(counts: np.ndarray, answers: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """0-based ranks of answers by how often training has seen items; a tie counts against them.

    Args:
      counts: int [num_items + 1], training frequency of each class; the first is padding.
      answers: int [users].
      excluded: int [users, width], items that do not compete (each once, not the answer), filled
        up with -1 or 0.

    Returns:
      int [users].
    """
    own = counts[answers]
    others = counts.size - 2 - np.searchsorted(np.sort(counts[1:]), own, side="left")
    seen = (excluded > 0) & (counts[excluded] >= own[:, None])
    return others - seen.sum(axis=1)


def popular_lists(counts: np.ndarray, excluded: np.ndarray, k: int) -> np.ndarray:
    """The k items that training has seen most often, for each user; ties go to the lower id.

    Args:
      counts: int [num_items + 1], training frequency of each class; the first is padding.
      excluded: int [users, width], items that do not compete, filled up with -1 or 0.
      k: length of a list.

    Returns:
      int [users, k], 0 where no item is left.
    """
    # So many that k of them are left, whatever is excluded.
    order = 1 + np.argsort(-counts[1:], kind="stable")[: k + excluded.shape[1]]
    gone = np.zeros((len(excluded), counts.size), bool)
    np.put_along_axis(gone, np.maximum(excluded, 0), True, axis=1)
    gone = gone[:, order]
    first = np.argsort(gone, axis=1, kind="stable")[:, :k]
    lists = np.where(np.take_along_axis(gone, first, axis=1), 0, order[first])
    return np.pad(lists, ((0, 0), (0, k - lists.shape[1])))


def ranking_metrics(
    ranks: np.ndarray, *, batch_size: int | None = None, cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, float | int]:
    """Recall@K (= HR@K with one answer), NDCG@K and MRR.

        ranking_metrics(np.array([0, 3, 12]))["ndcg@10"]

    Args:
      ranks: int [num_users], 0-based, in the order of evaluation.
      batch_size: None weighs all users equally. A number averages the means of batches (the
        reference's habit: users of a short last batch weigh more).
      cutoffs: values of K.

    Raises:
      ValueError: if there are no ranks.
    """
    ranks = np.asarray(ranks, dtype=np.int64)
    if ranks.size == 0:
        raise ValueError("ranking_metrics needs at least one rank")
    size = batch_size or ranks.size

    def average(values: np.ndarray) -> float:
        return float(np.mean([values[i : i + size].mean() for i in range(0, ranks.size, size)]))

    gains = 1.0 / np.log2(ranks + 2.0)
    metrics: dict[str, float | int] = {}
    for k in cutoffs:
        metrics[f"recall@{k}"] = average(ranks < k)
    for k in cutoffs:
        metrics[f"ndcg@{k}"] = average(np.where(ranks < k, gains, 0.0))
    metrics["mrr"] = average(1.0 / (ranks + 1.0))
    metrics["num_users"] = int(ranks.size)
    return metrics
