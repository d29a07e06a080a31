"""From interactions to one time-ordered sequence per user.

The protocol is in docs/reference/method.md, "Evaluation protocol".

Iterative k-core, ids 1..N. The interactions come in order (`interactions.py`), a part at a time,
so that memory does not limit their number.
"""

import dataclasses
import datetime
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from tssr_jax.data_pipeline.interactions import MORE, Interactions
from tssr_jax.errors import UserError, shown

# Leave-one-out needs an item for validation, one for test, and one to predict them from.
MIN_SEQUENCE_LENGTH = 3
Pairs = Iterable[tuple[np.ndarray, np.ndarray]]
# Maps the users and items that are left (bool) to their numbers of interactions with each other
# (int64); see `counted`.
Counts = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Taken(NamedTuple):
    """Interactions of some users, one user after the other, oldest first within a user.

    Attributes:
      items: int32, ids of the catalogue.
      times: int64, seconds since 1970.
      more: of `interactions.MORE`, by name, what the rows have.
    """

    items: np.ndarray
    times: np.ndarray
    more: Mapping[str, np.ndarray]


def taken(rows: np.ndarray, number: np.ndarray) -> Taken:
    """What is written of rows of the core; `number` has the id of each item in the catalogue."""
    more = {name: rows[name] for name in MORE if name in (rows.dtype.names or ())}
    return Taken(number[rows["item"]], rows["time"] // 1000, more)


@dataclasses.dataclass(frozen=True)
class Sequences:
    """The sequences of all users.

    Attributes:
      user_ids: the owner's ids, sorted; row u is user u.
      item_ids: the owner's ids, sorted; row i is item i + 1.
      lengths: int64 [num_users].
      item_counts: int64 [num_items], interactions of item i + 1 at index i.
      report: counts of what was read, dropped (by cause) and kept.
      parts: yields all interactions, some users at a time.
      events: names of the events, see `Interactions`.
    """

    user_ids: pl.Series
    item_ids: pl.Series
    lengths: np.ndarray
    item_counts: np.ndarray
    report: dict[str, Any]
    parts: Callable[[], Iterator[Taken]]
    events: tuple[str, ...] = ()


def milliseconds_of(date: str) -> int | None:
    """The begin of a day, UTC, in milliseconds since 1970; None for "".

    Raises:
      UserError: if it is no date.
    """
    if not date:
        return None
    try:
        day = datetime.date.fromisoformat(date)
    except ValueError as error:
        raise UserError(
            f"--config.data.core_before is {shown(repr(date))}, which is no date like 2024-12-31."
        ) from error
    return (day - datetime.date(1970, 1, 1)).days * 86_400_000


def pairs_before(rows: np.ndarray, end: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Users and items of rows of a time before `end`, in milliseconds; None is of all rows."""
    some = rows if end is None else rows[rows["time"] < end]
    return some["user"], some["item"]


def build_sequences(
    interactions: Interactions,
    *,
    min_user_interactions: int,
    min_item_interactions: int,
    core_before: str = "",
) -> Sequences:
    """Filters the interactions.

    Args:
      interactions: all of them, in order.
      min_user_interactions: the k of the k-core for users; values below `MIN_SEQUENCE_LENGTH` are
        raised to it.
      min_item_interactions: the k of the k-core for items.
      core_before: date before which the k-core counts; "" counts all.

    Raises:
      UserError: if nothing is left, or the date is none.
    """
    min_user = max(min_user_interactions, MIN_SEQUENCE_LENGTH)
    num_users, num_items = len(interactions.user_ids), len(interactions.item_ids)

    def counts(
        users: np.ndarray, items: np.ndarray, end: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        return counted((pairs_before(rows, end) for rows in interactions), users, items)

    least, end = (min_user, min_item_interactions), milliseconds_of(core_before)
    core = k_core(functools.partial(counts, end=end), num_users, num_items, *least)
    require_some(core, *least, interactions.num_read, core_before)
    core = core if end is None else core.counted_anew(counts)
    number = np.cumsum(core.items, dtype=np.int32)  # an item's id in the catalogue

    def kept() -> Iterator[np.ndarray]:
        return (rows[core.users[rows["user"]] & core.items[rows["item"]]] for rows in interactions)

    def parts() -> Iterator[Taken]:
        return (taken(rows, number) for rows in kept())

    totals = Counter[str]()
    for rows in kept():
        totals.update(neighbours(rows))
    return Sequences(
        user_ids=interactions.user_ids.filter(pl.Series(core.users)),
        item_ids=interactions.item_ids.filter(pl.Series(core.items)),
        lengths=core.user_counts[core.users],
        item_counts=core.item_counts[core.items],
        report=report_of(
            core, interactions.num_read, interactions.num_repeats, totals, interactions.events
        ),
        parts=parts,
        events=interactions.events,
    )


def report_of(
    core: "Core",
    num_read: int,
    num_repeats: int,
    totals: Counter[str],
    events: Sequence[str] = (),
) -> dict[str, Any]:
    """Counts of what was read, dropped and kept, and statistics of the sequences.

    Args:
      core: of the interactions.
      num_read: rows that were read.
      num_repeats: rows dropped because the same user, item, time and event came before.
      totals: the sums of `neighbours` over all rows of the core.
      events: names of the events.
    """
    lengths, item_counts = core.user_counts[core.users], core.item_counts[core.items]
    num_users, num_items = len(core.users), len(core.items)
    of_events = {name: totals[f"event {i}"] for i, name in enumerate(events, 1)}
    num_kept, short = int(lengths.sum()), core.first_user_counts < MIN_SEQUENCE_LENGTH
    return {
        "interactions_read": num_read,
        "interactions_dropped_as_repeats": num_repeats,
        "interactions_dropped_by_k_core": num_read - num_repeats - num_kept,
        "interactions_kept": num_kept,
        "k_core_rounds": core.rounds,
        "users_read": num_users,
        "users_dropped_with_fewer_than_3_items": int(short.sum()),
        "users_dropped_by_k_core": num_users - len(lengths) - int(short.sum()),
        "users": len(lengths),
        "items_read": num_items,
        "items_dropped_by_k_core": num_items - len(item_counts),
        "items": len(item_counts),
        "density": num_kept / (len(lengths) * len(item_counts)),
        "mean_length": float(lengths.mean()),
        **{f"length_percentile_{p}": int(np.percentile(lengths, p)) for p in (5, 25, 50, 75, 95)},
        "max_length": int(lengths.max()),
        "share_of_tied_neighbours": totals["tied"] / max(1, totals["neighbours"]),
        "repeated_user_item_pairs": totals["repeated"],
        "share_of_answers_that_the_user_had_before": totals["repeated_answers"]
        / (2 * len(lengths)),
        **({"events": of_events} if events else {}),
    }


def neighbours(rows: np.ndarray) -> dict[str, int]:
    """Counts of neighbours in histories, of ties among them, of repeats, repeated answers, events.

    Args:
      rows: of `interactions.ROW`, all of some users, in order.
    """
    same_user = rows["user"][1:] == rows["user"][:-1]
    tied = same_user & (rows["time"][1:] == rows["time"][:-1])
    pairs = rows["user"].astype(np.uint64) << np.uint64(32) | rows["item"]
    order = np.argsort(pairs, kind="stable")
    again = np.zeros(rows.size, bool)  # the user had the item before
    again[order[1:]] = pairs[order[1:]] == pairs[order[:-1]]
    ends = np.flatnonzero(np.append(~same_user, True)[: rows.size])
    counts = {}
    if "event" in (rows.dtype.names or ()):
        numbers = np.bincount(rows["event"]).tolist()
        counts = {f"event {i}": number for i, number in enumerate(numbers) if number}
    return counts | {
        "neighbours": int(same_user.sum()),
        "tied": int(tied.sum()),
        "repeated": int(again.sum()),
        "repeated_answers": int(again[ends].sum() + again[ends - 1].sum()),
    }


@dataclasses.dataclass(frozen=True)
class Core:
    """The largest set of interactions in which every user and every item has enough.

    Attributes:
      users, items: bool, the users and items of the core; an interaction is in the core if both
        its user and its item are.
      user_counts, item_counts: int64, interactions in the core.
      first_user_counts, first_item_counts: int64, interactions before anything was removed.
      rounds: number of rounds that removed something.
    """

    users: np.ndarray
    items: np.ndarray
    user_counts: np.ndarray
    item_counts: np.ndarray
    first_user_counts: np.ndarray
    first_item_counts: np.ndarray
    rounds: int

    def counted_anew(self, counts: Counts) -> "Core":
        """With the counts of all interactions, where only some decided what is in the core."""
        user_counts, item_counts = counts(self.users, self.items)
        return dataclasses.replace(self, user_counts=user_counts, item_counts=item_counts)


def k_core(
    counts: Counts,
    num_users: int,
    num_items: int,
    min_user: int,
    min_item: int,
) -> Core:
    """Removes users and items with too few interactions until none is left.

    Args:
      counts: see `Counts`.
      num_users: users are 0..num_users - 1.
      num_items: items are 0..num_items - 1.
      min_user: least number of interactions of a user.
      min_item: least number of interactions of an item.
    """
    users, items = np.ones(num_users, bool), np.ones(num_items, bool)
    first: tuple[np.ndarray, np.ndarray] | None = None
    rounds = 0
    while True:
        user_counts, item_counts = counts(users, items)
        if first is None:
            first = (user_counts, item_counts)
        still_users, still_items = users & (user_counts >= min_user), item_counts >= min_item
        still_items &= items
        if (still_users == users).all() and (still_items == items).all():
            return Core(users, items, user_counts, item_counts, first[0], first[1], rounds)
        users, items, rounds = still_users, still_items, rounds + 1


def counted(pairs: Pairs, users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts the interactions of the users and items that are left.

    Args:
      pairs: all interactions, (users, items) of some at a time.
      users: bool [num_users], which are left.
      items: bool [num_items].

    Returns:
      int64 [num_users] and [num_items]; 0 for those that are not left.
    """
    user_counts, item_counts = (np.zeros(left.size, np.int64) for left in (users, items))
    for some_users, some_items in pairs:
        kept = users[some_users] & items[some_items]
        user_counts += np.bincount(some_users[kept], minlength=users.size)
        item_counts += np.bincount(some_items[kept], minlength=items.size)
    return user_counts, item_counts


def require_some(
    core: Core, min_user: int, min_item: int, num_read: int, core_before: str = ""
) -> None:
    """Raises UserError if the core is empty."""
    if not core.users.any():
        told = _nothing_left(core, min_user, min_item, num_read)
        if core_before:
            told += f" Only those before {core_before} count (--config.data.core_before)."
        raise UserError(told)


def _nothing_left(core: Core, min_user: int, min_item: int, num_read: int) -> str:
    enough_users = int((core.first_user_counts >= min_user).sum())
    enough_items = int((core.first_item_counts >= min_item).sum())
    return (
        f"Nothing is left of {num_read:,} interactions: {enough_users:,} of "
        f"{len(core.users):,} users have at least {min_user}, {enough_items:,} of "
        f"{len(core.items):,} items have at least {min_item}, and after {core.rounds} rounds of "
        "removing the others none had. Lower --config.data.min_user_interactions and "
        "--config.data.min_item_interactions, or check that the ids of users and items are in "
        "the right columns."
    )
