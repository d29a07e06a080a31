"""From interactions to one time-ordered sequence per user (SPEC "Evaluation protocol").

Iterative k-core, order by time with ties broken by a seeded hash of (user, item), ids 1..N.
The order of the file and the values of the ids have no influence but through that hash.
"""

import dataclasses
import hashlib

import numpy as np
import polars as pl

from tssr_jax.errors import UserError

# Leave-one-out needs an item for validation, one for test, and one to predict them from.
MIN_SEQUENCE_LENGTH = 3


@dataclasses.dataclass(frozen=True)
class Sequences:
    """The sequences of all users, one after the other.

    Attributes:
      user_ids: the owner's ids, sorted; row u is user u.
      item_ids: the owner's ids, sorted; row i is item i + 1.
      items: int32 [num_interactions], values 1..num_items, oldest first within a user.
      offsets: int64 [num_users + 1]; user u owns items[offsets[u]:offsets[u + 1]].
      report: counts of what was read, dropped (by cause) and kept.
    """

    user_ids: np.ndarray
    item_ids: np.ndarray
    items: np.ndarray
    offsets: np.ndarray
    report: dict[str, int | float]


def build_sequences(
    interactions: pl.DataFrame,
    *,
    min_user_interactions: int,
    min_item_interactions: int,
    tie_seed: int,
) -> Sequences:
    """Filters and orders the interactions.

    Args:
      interactions: columns `user`, `item` (strings) and `timestamp` (int64).
      min_user_interactions: the k of the k-core for users; at least `MIN_SEQUENCE_LENGTH` is
        taken in any case.
      min_item_interactions: the k of the k-core for items.
      tie_seed: seeds the order of a user's interactions at one time.

    Raises:
      UserError: if nothing is left.
    """
    user_ids, users = _codes(interactions["user"])
    item_ids, items = _codes(interactions["item"])
    min_user = max(min_user_interactions, MIN_SEQUENCE_LENGTH)
    keep, rounds = k_core(users, items, min_user, min_item_interactions)
    dropped = int((~keep).sum())
    if dropped == keep.size:
        raise UserError(
            f"Nothing is left of {keep.size} interactions: no users with at least {min_user} "
            f"interactions among items with at least {min_item_interactions}. Lower "
            "--config.data.min_user_interactions and --config.data.min_item_interactions, or "
            "check that the ids of users and items are in the right columns."
        )
    short = np.bincount(users) < MIN_SEQUENCE_LENGTH
    timestamps = interactions["timestamp"].to_numpy()[keep]
    users, items = users[keep], items[keep]
    ties = _tie_breakers(user_ids, item_ids, users, items, tie_seed)
    order = np.lexsort((ties, timestamps, users))
    timestamps = timestamps[order]
    kept_users, users = np.unique(users[order], return_inverse=True)
    kept_items, items = np.unique(items[order], return_inverse=True)
    report: dict[str, int | float] = {
        "interactions_read": keep.size,
        "interactions_dropped_by_k_core": dropped,
        "interactions_kept": keep.size - dropped,
        "k_core_rounds": rounds,
        "users_read": len(user_ids),
        "users_dropped_with_fewer_than_3_items": int(short.sum()),
        "users_dropped_by_k_core": len(user_ids) - len(kept_users) - int(short.sum()),
        "users": len(kept_users),
        "items_read": len(item_ids),
        "items_dropped_by_k_core": len(item_ids) - len(kept_items),
        "items": len(kept_items),
    }
    return Sequences(
        user_ids=user_ids[kept_users],
        item_ids=item_ids[kept_items],
        items=(items + 1).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(np.bincount(users))]).astype(np.int64),
        report=report | _statistics(users, items, timestamps),
    )


def _statistics(
    users: np.ndarray, items: np.ndarray, timestamps: np.ndarray
) -> dict[str, int | float]:
    """What the report tells of the sequences, from their codes in order."""
    lengths = np.bincount(users)
    neighbours = users[1:] == users[:-1]
    tied = neighbours & (timestamps[1:] == timestamps[:-1])
    pairs = np.unique(users * (items.max() + 1) + items)
    return {
        "mean_length": float(lengths.mean()),
        "median_length": float(np.median(lengths)),
        "max_length": int(lengths.max()),
        "share_of_tied_neighbours": float(tied.sum() / max(1, neighbours.sum())),
        "repeated_user_item_pairs": int(users.size - pairs.size),
    }


def k_core(
    users: np.ndarray, items: np.ndarray, min_user: int, min_item: int
) -> tuple[np.ndarray, int]:
    """The largest set of interactions in which every user and every item has enough.

    Args:
      users: int [num_interactions], codes from 0.
      items: int [num_interactions], codes from 0.
      min_user: least number of interactions of a user.
      min_item: least number of interactions of an item.

    Returns:
      bool [num_interactions], and the number of rounds in which something was removed.
    """
    keep = np.ones(users.size, bool)
    rounds = 0
    while True:
        enough_user = np.bincount(users[keep], minlength=users.max(initial=0) + 1) >= min_user
        enough_item = np.bincount(items[keep], minlength=items.max(initial=0) + 1) >= min_item
        still = keep & enough_user[users] & enough_item[items]
        if still.sum() == keep.sum():
            return keep, rounds
        keep, rounds = still, rounds + 1


def _codes(ids: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct ids, and each row's position among them."""
    distinct = ids.unique().sort()
    codes = ids.cast(pl.Enum(distinct)).to_physical().to_numpy().astype(np.int64)
    return distinct.to_numpy(), codes


def _tie_breakers(
    user_ids: np.ndarray, item_ids: np.ndarray, users: np.ndarray, items: np.ndarray, seed: int
) -> np.ndarray:
    """uint64 [num_interactions]: a hash of (seed, user id, item id), the same on every machine."""
    item_hash = _hash_ids(item_ids)[items]
    return _mix(_mix(_hash_ids(user_ids)[users] + np.uint64(seed)) ^ item_hash)


def _hash_ids(ids: np.ndarray) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(str(i).encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every input bit changes every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
