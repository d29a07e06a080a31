"""Any number of interactions within bounded memory: ids become numbers, rows are spilled to disk.

    chunks of (user, item, timestamp)  ->  encoded rows  ->  parts, each a range of users

Users and items are numbered by the rank of their sorted ids. A part holds all rows of its users,
sorted by user, then by time, then by a seeded hash of (user, item), never by file order or by ids.
Memory holds the ids, one part, and a few bytes for each user and item.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from tssr_jax.errors import UserError, shown

# A row as it is spilled. Users and items are numbers, times are milliseconds since 1970.
ROW = np.dtype([("user", "<u4"), ("item", "<u4"), ("time", "<i8")])
# What rows have as well where the data is read with it. Events are numbers from 1.
MORE = {"event": "<u2", "weight": "<f4"}
ROWS_PER_PART = 4_000_000
_MOST_EVENTS = 255


def row_type(columns: Iterable[str]) -> np.dtype:
    """The type of rows of chunks with these columns: `ROW`, and what of `MORE` they have."""
    there = set(columns)
    return np.dtype([*ROW.descr, *((name, MORE[name]) for name in MORE if name in there)])


@dataclasses.dataclass(frozen=True)
class Interactions:
    """All interactions of a dump, on disk.

    Attributes:
      user_ids: the owner's ids, sorted; user u is row u.
      item_ids: the owner's ids, sorted.
      parts: files of `ROW`s; a user's rows are in one of them, users ascend through the parts.
      num_read: rows that were read.
      num_repeats: rows dropped because the same user, item, time and event came before.
      row: type of the rows, see `row_type`.
      events: names of the events, see `few_events`; event i is at index i - 1. () if none are read.
    """

    user_ids: pl.Series
    item_ids: pl.Series
    parts: tuple[Path, ...]
    num_read: int
    num_repeats: int
    row: np.dtype = ROW
    events: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Loads one part after the other."""
        for path in self.parts:
            yield np.fromfile(path, self.row)


def collect(
    chunks: Iterable[pl.DataFrame],
    scratch: Path,
    *,
    tie_seed: int,
    drop_repeats: bool,
    targets: Collection[str] = (),
    rows_per_part: int = ROWS_PER_PART,
) -> Interactions:
    """Encodes, partitions and orders the interactions.

    Args:
      chunks: columns `user`, `item` (strings) and `timestamp` (int64 milliseconds); all or none
        have `event` (strings) and `weight` (float).
      scratch: an existing folder for the parts; it needs 32 bytes for each row.
      tie_seed: seeds the order of a user's interactions at one time.
      drop_repeats: keep one row where user, item, time and event are the same.
      targets: events that are predicted.
      rows_per_part: about how many rows are in memory at a time.

    Raises:
      UserError: if there are more than 255 different events.
    """
    encoded, row = scratch / "encoded", ROW
    ids = {name: _Ids() for name in ("user", "item", "event")}
    with encoded.open("wb") as file:
        for chunk in chunks:
            row = row_type(chunk.columns)
            rows = np.empty(chunk.height, row)
            rows["time"] = chunk["timestamp"].to_numpy()
            for name in ("user", "item", *MORE):
                if name in ids and name in chunk.columns:
                    rows[name] = ids[name].encode(chunk[name])
                elif name in chunk.columns:
                    rows[name] = chunk[name].to_numpy()
            rows.tofile(file)
    (user_ids, user_rank), (item_ids, item_rank) = ids["user"].ranked(), ids["item"].ranked()
    events, event_rank = ids["event"].ranked()
    names = few_events(events, targets)
    ranks = {"user": user_rank, "item": item_rank}
    if "event" in (row.names or ()):
        ranks["event"] = np.array([1 + names.index(name) for name in events])[event_rank]
    counts = np.zeros(len(user_ids), np.int64)
    for rows in _blocks(encoded, row, rows_per_part):
        counts += np.bincount(user_rank[rows["user"]], minlength=len(counts))
    parts = _partition(encoded, row, counts, ranks, rows_per_part)
    encoded.unlink()
    hashes = hash_ids(user_ids) + np.uint64(tie_seed), hash_ids(item_ids)
    kept = sum(_order(path, row, *hashes, drop_repeats) for path in parts)
    num_read = int(counts.sum())
    repeats = num_read - kept
    return Interactions(user_ids, item_ids, tuple(parts), num_read, repeats, row, names)


def few_events(names: Iterable[str], targets: Collection[str]) -> tuple[str, ...]:
    """Events in the order of their numbers; raises UserError if they are too many to be events.

    Those that are predicted come last: of one item at one time, a view stands before a purchase.
    """
    found = tuple(sorted(names, key=lambda name: (name in targets, name)))
    if len(found) > _MOST_EVENTS:
        raise UserError(
            f"There are {len(found):,} different events, such as {shown(found[0])!r} and "
            f"{shown(found[-1])!r}; at most {_MOST_EVENTS} can be read. Is "
            "--config.data.event_column another column?"
        )
    return found


class _Ids:
    """Maps strings to numbers, with gaps, up to about the number of distinct strings."""

    def __init__(self) -> None:
        # Categories of this object. Polars drops categories that no series uses: the holder uses
        # them as long as this object lives.
        self._dtype = pl.Categorical(pl.Categories.random())
        self._holder = pl.Series([""], dtype=self._dtype)
        self._seen = np.zeros(0, bool)

    def encode(self, ids: pl.Series) -> np.ndarray:
        """uint32, one for each id."""
        numbers = ids.cast(self._dtype).to_physical().to_numpy()
        room = int(numbers.max(initial=0)) + 1
        if room > self._seen.size:
            self._seen = np.concatenate([self._seen, np.zeros(room, bool)])
        self._seen[numbers] = True
        return numbers

    def ranked(self) -> tuple[pl.Series, np.ndarray]:
        """The distinct ids, sorted, and the rank of each number among them."""
        numbers = np.flatnonzero(self._seen).astype(np.uint32)
        ids = pl.select(pl.Series(numbers).cat.to(self._dtype).cast(pl.String)).to_series()
        order = ids.arg_sort().to_numpy()
        rank = np.zeros(self._seen.size, np.uint32)
        rank[numbers[order]] = np.arange(numbers.size, dtype=np.uint32)
        return ids.gather(order), rank


def _blocks(path: Path, row: np.dtype, number: int) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        while (block := np.fromfile(file, row, number)).size:
            yield block


def _partition(
    encoded: Path,
    row: np.dtype,
    counts: np.ndarray,
    ranks: Mapping[str, np.ndarray],
    rows_per_part: int,
) -> list[Path]:
    """Writes each row, with ranks in place of numbers, to the part of its user."""
    part_of_user = (np.cumsum(counts) - 1) // rows_per_part
    _, part_of_user = np.unique(part_of_user, return_inverse=True)
    number = int(part_of_user.max(initial=-1)) + 1
    paths = [encoded.with_name(f"part-{i:05d}") for i in range(number)]
    for rows in _blocks(encoded, row, rows_per_part):
        for name, rank in ranks.items():
            rows[name] = rank[rows[name]]
        part = part_of_user[rows["user"]]
        rows = rows[np.argsort(part, kind="stable")]  # noqa: PLW2901
        ends = np.cumsum(np.bincount(part, minlength=number))
        for path, own in zip(paths, np.split(rows, ends[:-1]), strict=True):
            if own.size:
                with path.open("ab") as file:
                    own.tofile(file)
    return paths


def _order(
    path: Path, row: np.dtype, user_hash: np.ndarray, item_hash: np.ndarray, drop_repeats: bool
) -> int:
    """Sorts the file of a part and returns the number of rows that it keeps."""
    rows = ordered(np.fromfile(path, row), user_hash, item_hash, drop_repeats)
    part = path.with_suffix(".ordered")
    rows.tofile(part)
    part.replace(path)
    return rows.size


def ordered(
    rows: np.ndarray, user_hash: np.ndarray, item_hash: np.ndarray, drop_repeats: bool
) -> np.ndarray:
    """Rows by user, then by time, then by a hash of (user, item), then by event.

    Args:
      rows: of a type that `row_type` returns.
      user_hash: uint64, `hash_ids` of the users, with the seed of ties added.
      item_hash: uint64, `hash_ids` of the items.
      drop_repeats: keep one row where user, item, time and event are the same: that of the largest
        weight.
    """
    ties = _mix(_mix(user_hash[rows["user"]]) ^ item_hash[rows["item"]])
    names = rows.dtype.names or ()
    more = [-rows["weight"]] if "weight" in names else []
    more += [rows["event"]] if "event" in names else []
    rows = rows[np.lexsort((*more, rows["item"], ties, rows["time"], rows["user"]))]
    if drop_repeats and rows.size:
        keys = [name for name in names if name != "weight"]
        differ = np.any([rows[name][1:] != rows[name][:-1] for name in keys], axis=0)
        rows = rows[np.concatenate([[True], differ])]
    return rows


def hash_ids(ids: pl.Series) -> np.ndarray:
    """A number of 64 bits for each id, uint64."""
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every input bit changes every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
