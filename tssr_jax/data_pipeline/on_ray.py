"""The steps of `interactions` and `sequences` as tasks on a Ray cluster, with equal results.

    chunks of rows -> the catalogue's ids -> pieces, by ranges of users -> parts -> k-core -> files

A part holds all rows of a range of user ids, so that users are numbered within their part, and
parts follow each other. Rows move once, from chunks to parts. Ray keeps chunks and parts in its
object store, which spills to disk, and computes those again that were lost with a machine.
"""

import dataclasses
import functools
import itertools
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from tssr_jax.data_pipeline import builder, interactions, records
from tssr_jax.data_pipeline.interactions import MORE
from tssr_jax.data_pipeline.sequences import (
    MIN_SEQUENCE_LENGTH,
    Core,
    Sequences,
    Taken,
    counted,
    k_core,
    milliseconds_of,
    neighbours,
    pairs_before,
    report_of,
    require_some,
    taken,
)
from tssr_jax.data_pipeline.sources import SOURCES, Dump
from tssr_jax.data_pipeline.sources.base import part_files
from tssr_jax.data_pipeline.time_range import TimeRange
from tssr_jax.errors import UserError

# Rows of users that a chunk names, to cut all users into ranges of about equal numbers of rows.
_SAMPLE = 256
# Chunks that are cut into pieces by one task, and tables of ids that one task unites.
_CHUNKS_OF_A_TASK, _TABLES_OF_A_TASK = 8, 16
# How often a task is done again after its machine was lost.
_RETRIES = 5


class _Known(NamedTuple):
    """What is told of a chunk.

    Attributes:
      rows: its number.
      users: of some rows.
      size: bytes.
      events: different ones; () if it has none.
    """

    rows: int
    users: pl.Series
    size: int
    events: tuple[str, ...]


class _Part(NamedTuple):
    """All rows of a range of users, in order.

    Attributes:
      user_ids: the owner's ids, sorted.
      rows: of `interactions.ROW`; users count from 0 within the part.
    """

    user_ids: pl.Series
    rows: np.ndarray


class _Summary(NamedTuple):
    """Numbers of a part's users, of its rows, and of its rows that are no repeats."""

    users: int
    rows: int
    different: int


class _Kept(NamedTuple):
    """What is written of a part.

    Attributes:
      user_ids: ids of users of the core.
      lengths: int64, of their histories.
      taken: their interactions.
    """

    user_ids: pl.Series
    lengths: np.ndarray
    taken: Taken


class RayPreparation:
    """Prepares the sequences of a dump on a cluster.

    Args:
      ray: the package, connected.
    """

    def __init__(self, ray: Any):
        self._ray = ray
        self._kept: list[Any] = []
        self._lengths: list[np.ndarray] = []
        self._named: set[str] = set()
        self._events: tuple[str, ...] = ()

    def _do(
        self, function: Any, *arguments: Any, returns: int | str = 1, anywhere: bool = True
    ) -> Any:
        """Starts a task: on any machine, or on the one that holds most of its arguments."""
        where = "SPREAD" if anywhere else "DEFAULT"
        options = {"num_returns": returns, "scheduling_strategy": where, "max_retries": _RETRIES}
        return self._ray.remote(function).options(**options).remote(*arguments)

    def sequences(self, source: str, dump: Dump, times: TimeRange) -> Sequences:
        """See `sequences.build_sequences`; the result has no `user_ids`, and no `parts`.

        Args:
          source: name of the source.
          dump: its files and settings; gets the counts of what was read.
          times: gets the range of times.

        Raises:
          UserError: as reading and filtering do.
        """
        data = dump.data
        item_ids, parts, told = self._parts(source, dump, times)
        starts = np.cumsum([0, *(summary.users for summary in told)])
        num_read = sum(summary.rows for summary in told)
        num_repeats = num_read - sum(summary.different for summary in told)
        k = max(data.min_user_interactions, MIN_SEQUENCE_LENGTH), data.min_item_interactions
        counts = functools.partial(self._counts, parts, starts)
        end = milliseconds_of(data.core_before)
        core = k_core(functools.partial(counts, end=end), int(starts[-1]), len(item_ids), *k)
        require_some(core, *k, num_read, data.core_before)
        core = core if end is None else core.counted_anew(counts)
        totals = self._keep(parts, starts, core)
        return Sequences(
            user_ids=pl.Series(dtype=pl.String),
            item_ids=item_ids.filter(pl.Series(core.items)),
            lengths=np.concatenate(self._lengths),
            item_counts=core.item_counts[core.items],
            report=report_of(core, num_read, num_repeats, totals, self._events),
            parts=lambda: iter(()),
            events=self._events,
        )

    def _parts(
        self, source: str, dump: Dump, times: TimeRange
    ) -> tuple[pl.Series, list[Any], list["_Summary"]]:
        """All items, sorted; the parts, in the object store; and what is known of them."""
        chunks = list(self._chunks(source, dump, times))
        if not chunks:
            raise UserError(f"{dump.files.interactions} has no interactions.")
        times.require_plausible()
        num_rows, items, users, largest = self._summed_up(chunks)
        self._events = interactions.few_events(self._named, dump.data.target_events)
        self._require_room(largest * min(len(chunks), _CHUNKS_OF_A_TASK))
        number = max(1, math.ceil(num_rows / interactions.ROWS_PER_PART))
        pieces = self._pieces(chunks, items, _ranges(users, number))
        item_ids = self._ray.get(items)
        hashes = self._ray.put(interactions.hash_ids(item_ids))
        settings = dump.data.tie_seed, dump.data.drop_repeats, self._events, hashes
        parts = [self._do(_part, *settings, *own, returns=2) for own in pieces]
        return item_ids, [part for part, _ in parts], self._ray.get([own for _, own in parts])

    def _counts(
        self,
        parts: Sequence[Any],
        starts: np.ndarray,
        users: np.ndarray,
        items: np.ndarray,
        end: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `sequences.counted`."""
        left, own, total = self._ray.put(items), [], np.zeros(items.size, np.int64)
        ranges = itertools.pairwise(starts)
        asked = [
            self._do(_counts, part, users[first:last], left, end, anywhere=False)
            for part, (first, last) in zip(parts, ranges, strict=True)
        ]
        for ref in asked:
            user_counts, found, number = self._ray.get(ref)
            own.append(user_counts)
            total[found] += number
        return np.concatenate(own), total

    def _keep(self, parts: Sequence[Any], starts: np.ndarray, core: Core) -> Counter[str]:
        """Makes what is written of the parts; returns the sums of `neighbours`."""
        items, totals = self._ray.put(core.items), Counter[str]()
        finished = [
            self._do(_keep, part, core.users[start:end], items, returns=2, anywhere=False)
            for part, (start, end) in zip(parts, itertools.pairwise(starts), strict=True)
        ]
        self._kept, self._lengths = [kept for kept, _ in finished], []
        for lengths, own in self._ray.get([summary for _, summary in finished]):
            self._lengths.append(lengths)
            totals.update(own)
        return totals

    def write_users(self, folder: Path) -> list[np.ndarray]:
        """Writes the files of users, which tasks make; see `builder.write`."""
        ends = np.cumsum([lengths.size for lengths in self._lengths])
        made: list[Any] = []
        for number in range(-(-int(ends[-1]) // builder.USERS_PER_SHARD)):
            first = number * builder.USERS_PER_SHARD
            last = min(first + builder.USERS_PER_SHARD, int(ends[-1]))
            some, cuts = [], []
            for part, (start, end) in enumerate(itertools.pairwise([0, *ends])):
                if max(start, first) < min(end, last):
                    some.append(self._kept[part])
                    cuts.append((max(start, first) - start, min(end, last) - start))
            made.append(self._do(_made, cuts, *some, anywhere=False))
        sizes = []
        for number in range(len(made)):
            content, own = self._ray.get(made[number])
            made[number] = None  # frees the file in the object store
            records.save_shard(folder, number, content)
            sizes.append(own)
        return sizes

    def _chunks(self, source: str, dump: Dump, times: TimeRange) -> Iterator[Any]:
        """Chunks of rows, in the object store; each file of several is read by a task."""
        files = part_files(dump.files.interactions)
        if len(files) == 1:
            for chunk in SOURCES[source].interactions(dump):
                times.add(chunk)
                yield self._ray.put(chunk)
            return
        streams = [
            self._do(_read, source, _with_file(dump, path.absolute()), returns="streaming")
            for path in files
        ]
        for stream in streams:
            refs = list(stream)
            own, counts = self._ray.get(refs.pop())
            times.merge(own)
            dump.counts.update(counts)
            yield from refs

    def _require_room(self, size: int) -> None:
        """Raises UserError if a task that reads so many bytes has no room: Ray would wait."""
        stores = [
            node["Resources"].get("object_store_memory", 0)
            for node in self._ray.nodes()
            if node["Alive"]
        ]
        needed = 2 * size  # for what it reads, and for what it returns
        if min(stores) < needed:
            raise UserError(
                f"A machine of the cluster has an object store of {min(stores) / 2**20:,.0f} MiB; "
                f"preparing these interactions needs {math.ceil(needed / 2**20):,} MiB. Start Ray "
                f"there with --object-store-memory={needed}."
            )

    def _summed_up(self, chunks: Sequence[Any]) -> tuple[int, Any, pl.Series, int]:
        """What is known of chunks.

        Returns:
          Number of rows; all items (distinct, sorted; in the object store); some users; and bytes
          of the largest chunk.
        """
        known = [self._do(_known, chunk, returns=2) for chunk in chunks]
        tables, size = [items for items, _ in known], _TABLES_OF_A_TASK
        while len(tables) > 1:
            groups = [tables[i : i + size] for i in range(0, len(tables), size)]
            tables = [self._do(_united, *group) for group in groups]
        told = self._ray.get([own for _, own in known])
        some = pl.concat([own.users for own in told])
        self._named = {name for own in told for name in own.events}
        return sum(own.rows for own in told), tables[0], some, max(own.size for own in told)

    def _pieces(self, chunks: Sequence[Any], items: Any, ranges: pl.Series) -> list[list[Any]]:
        """For each range of users its pieces of the chunks."""
        number, by_task = len(ranges) + 1, []
        for i in range(0, len(chunks), _CHUNKS_OF_A_TASK):
            some = chunks[i : i + _CHUNKS_OF_A_TASK]
            own = self._do(_cut, items, ranges, *some, returns=number)
            by_task.append([own] if number == 1 else own)
        return [[own[part] for own in by_task] for part in range(number)]


def _with_file(dump: Dump, path: Path) -> Dump:
    return dump._replace(
        files=dataclasses.replace(dump.files, interactions=path), counts=Counter[str]()
    )


def _read(source: str, dump: Dump) -> Iterator[Any]:
    """Chunks of a file's rows; last, the range of its times and the counts of what was read."""
    times = TimeRange(dump.files.interactions)
    for chunk in SOURCES[source].interactions(dump):
        times.add(chunk)
        yield chunk
    yield times, dump.counts


def _known(chunk: pl.DataFrame) -> tuple[pl.Series, _Known]:
    """A chunk's items (distinct, sorted); and what is told of its rows."""
    users = chunk["user"].sort()
    step = max(1, len(users) // _SAMPLE)
    events = tuple(chunk["event"].unique()) if "event" in chunk.columns else ()
    own = _Known(chunk.height, users.gather_every(step), int(chunk.estimated_size()), events)
    return chunk["item"].unique().sort(), own


def _united(*tables: pl.Series) -> pl.Series:
    return pl.concat(tables).unique().sort()


def _ranges(users: pl.Series, number: int) -> pl.Series:
    """The first users of all ranges but the first, from some rows' users."""
    ordered = users.sort()
    places = [len(ordered) * i // number for i in range(1, number)]
    return ordered.gather(places).unique().sort()


def _cut(items: pl.Series, ranges: pl.Series, *chunks: pl.DataFrame) -> Any:
    """Rows by ranges of users, with ranks in place of items' ids."""
    ranks = pl.DataFrame({"item": items, "rank": np.arange(len(items), dtype=np.uint32)})
    rows = pl.concat(chunks).join(ranks, on="item", how="left").sort("user")
    starts = [0, *rows["user"].search_sorted(ranges, side="left").to_list(), rows.height]
    pieces = [
        rows[start:end].select("user", "rank", "timestamp", *(n for n in MORE if n in rows.columns))
        for start, end in itertools.pairwise(starts)
    ]
    return pieces if len(pieces) > 1 else pieces[0]


def _part(
    tie_seed: int,
    drop_repeats: bool,
    events: Sequence[str],
    item_hash: np.ndarray,
    *pieces: pl.DataFrame,
) -> tuple[_Part, _Summary]:
    table = pl.concat(pieces)
    user_ids = table["user"].unique().sort()
    rows = np.empty(table.height, interactions.row_type(table.columns))
    rows["user"] = user_ids.search_sorted(table["user"]).to_numpy()
    rows["item"], rows["time"] = table["rank"].to_numpy(), table["timestamp"].to_numpy()
    if "event" in table.columns:
        numbers = dict(zip(events, range(1, 1 + len(events)), strict=True))
        rows["event"] = table["event"].replace_strict(numbers, return_dtype=pl.UInt16).to_numpy()
    if "weight" in table.columns:
        rows["weight"] = table["weight"].to_numpy()
    user_hash = interactions.hash_ids(user_ids) + np.uint64(tie_seed)
    rows = interactions.ordered(rows, user_hash, item_hash, drop_repeats)
    return _Part(user_ids, rows), _Summary(len(user_ids), table.height, rows.size)


def _counts(
    part: _Part, users: np.ndarray, items: np.ndarray, end: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of the users before a time; and which items were found, and how often."""
    user_counts, item_counts = counted([pairs_before(part.rows, end)], users, items)
    found = np.flatnonzero(item_counts)
    return user_counts, found, item_counts[found]


def _keep(
    part: _Part, users: np.ndarray, items: np.ndarray
) -> tuple[_Kept, tuple[np.ndarray, dict[str, int]]]:
    """What is written of a part; and its lengths, and counts for the report."""
    rows = part.rows[users[part.rows["user"]] & items[part.rows["item"]]]
    lengths = np.bincount(rows["user"], minlength=users.size)[users]
    number = np.cumsum(items, dtype=np.int32)  # an item's id in the catalogue
    kept = _Kept(part.user_ids.filter(pl.Series(users)), lengths, taken(rows, number))
    return kept, (lengths, neighbours(rows))


def _made(cuts: Iterable[tuple[int, int]], *parts: _Kept) -> tuple[np.ndarray, np.ndarray]:
    """A file of some users of each part, as uint8; and the sizes of its examples."""

    def examples() -> Iterator[bytes]:
        for (first, last), part in zip(cuts, parts, strict=True):
            starts = np.cumsum([0, *part.lengths])
            rows = slice(starts[first], starts[last])
            items, times, more = part.taken
            yield from builder.user_examples(
                part.user_ids[int(first) : int(last)],
                part.lengths[first:last],
                Taken(items[rows], times[rows], {name: own[rows] for name, own in more.items()}),
            )

    with tempfile.TemporaryDirectory() as folder:
        sizes = records.write_shard(Path(folder), 0, examples())
        return records.read_shard(Path(folder), 0), sizes
