"""Prepares a data set once and finds it again: raw files -> sequences -> TFRecords.

    tssr prepare --config=hm --config.data.raw_dir=FOLDER

prepares without training, and prints a folder that holds report.json and report.png.

The key of a data set hashes the raw files and every setting that the result depends on, so that a
change of either makes a new data set.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import polars as pl
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tssr_jax.data_pipeline import builder, cache, digests, fetching, profiles, records, report
from tssr_jax.data_pipeline.interactions import collect
from tssr_jax.data_pipeline.on_ray import RayPreparation
from tssr_jax.data_pipeline.sequences import Sequences, build_sequences, milliseconds_of
from tssr_jax.data_pipeline.sources import SOURCES, Dump, RawFiles, Source
from tssr_jax.data_pipeline.sources.base import part_files
from tssr_jax.data_pipeline.sources.descriptions import with_ids_of_interactions
from tssr_jax.data_pipeline.texts import describe
from tssr_jax.data_pipeline.time_range import TimeRange
from tssr_jax.errors import UserError, require_utf8, shown

_VERSION = 3
# Settings that are not in the key: they do not affect the result, or files are hashed instead.
_NOT_IN_KEY = ("cache_dir", "raw_dir", "in_memory_gib")


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """One data set, ready for the input pipeline. Large parts are read on first use.

    Attributes:
      key: identifies raw files and settings.
      folder: where it lies.
      report: the preparation report.
    """

    key: str
    folder: Path
    report: dict

    @property
    def num_users(self) -> int:
        """Number of users."""
        return int(self.report["users"])

    @property
    def num_items(self) -> int:
        """Size of the catalogue; item ids are 1..num_items."""
        return int(self.report["items"])

    @property
    def events(self) -> tuple[str, ...]:
        """Names of the events that were read; number i is at index i - 1."""
        return tuple(self.report.get("events", {}))

    @property
    def profile_fields(self) -> dict[str, list[str]]:
        """Values of the fields of users that are read, see `profiles`; {} if none are."""
        return dict(self.report.get("profiles", {}))

    @functools.cached_property
    def profiles(self) -> np.ndarray | None:
        """Codes of the users, int32 [num_users], see `profiles`; None if no fields are read."""
        return np.load(self.folder / builder.USERS / profiles.FILE) if self.profile_fields else None

    @functools.cached_property
    def user_ids(self) -> list[str]:
        """The owner's id of user u at index u."""
        return records.texts(self.folder / builder.USERS, "user_id")

    @functools.cached_property
    def item_ids(self) -> list[str]:
        """The owner's id of item i at index i - 1."""
        return records.texts(self.folder / builder.ITEMS, "item_id")

    @functools.cached_property
    def titles(self) -> list[str]:
        """Title of item i at index i - 1, "" without one."""
        return records.texts(self.folder / builder.ITEMS, "title")

    @functools.cached_property
    def texts(self) -> list[str]:
        """Text of item i at index i - 1, "" without one."""
        return records.texts(self.folder / builder.ITEMS, "text")

    @functools.cached_property
    def images(self) -> list[str]:
        """Image of item i at index i - 1: a path below the raw files or a URL, "" without one."""
        return records.texts(self.folder / builder.ITEMS, "image")


def prepare(data: ml_collections.ConfigDict, ray: Any = None) -> PreparedData:
    """Loads the data set that section `data` of the config describes, preparing it if needed.

    Args:
      data: section `data` of the config.
      ray: the package, connected to a cluster that prepares; None: this process does.

    Raises:
      UserError: if the source is unknown, or its files are missing or malformed.
    """
    if data.source not in SOURCES:
        raise UserError(
            f"--config.data.source is {data.source!r}; known sources: {', '.join(sorted(SOURCES))}."
        )
    if data.repeated_items not in ("error", "first"):
        raise UserError(
            f"--config.data.repeated_items is {data.repeated_items!r}; it is 'error' or 'first'."
        )
    _require_columns(data)
    milliseconds_of(data.core_before)
    for name in ("raw_dir", "cache_dir"):
        require_utf8(data[name], f"--config.data.{name}")
    files = SOURCES[data.source].locate(data)
    key = _key(files, data)
    found = find_prepared(data, key)
    if found is None:
        cache.remove_leftovers(data.cache_dir)
        name = _name(data, key)
        _prepare_into(cache.local_folder(data.cache_dir) / name, files, data, ray)
        cache.share(data.cache_dir, name)
        found = find_prepared(data, key)
        assert found is not None
    return found


def _require_columns(data: ml_collections.ConfigDict) -> None:
    """Raises UserError if events, weights or users are asked for that the source can't have."""
    bad = next((own for own in data.target_events if not isinstance(own, str) or not own), None)
    if bad is not None:
        raise UserError(
            f"--config.data.target_events is {tuple(data.target_events)}; it must be names of "
            f"events, in quotes: {str(bad)!r}, not {bad!r}."
        )
    if data.target_events and not data.event_column:
        raise UserError("--config.data.event_column is ''; target_events needs a column of events.")
    for field, kind, told in (
        ("target_events", "event", "event of interactions"),
        ("weight_column", "weight", "weight of interactions"),
        ("user_fields", "users", "file of users"),
    ):
        if data[field] and kind not in SOURCES[data.source].more:
            able = ", ".join(name for name in SOURCES if kind in SOURCES[name].more)
            raise UserError(
                f"--config.data.{field} is {data[field]!r}, but source {data.source!r} has no "
                f"{told}; these have: {able}."
            )
    _require_user_fields(data)


def _require_user_fields(data: ml_collections.ConfigDict) -> None:
    names = tuple(data.user_fields)
    bad = next((n for n in names if not isinstance(n, str) or not n or names.count(n) > 1), None)
    if bad is not None:
        raise UserError(
            f"--config.data.user_fields is {names}; it must be different names of columns, in "
            "quotes."
        )
    columns = (data.user_column, data.item_column, data.timestamp_column, data.event_column)
    if taken := [name for name in names if name in {*profiles.TAKEN, *columns}]:
        raise UserError(
            f"--config.data.user_fields names {shown(repr(taken[0]))}, which is a column of "
            "histories: rename it in the users' file."
        )


def find_prepared(data: ml_collections.ConfigDict, key: str) -> PreparedData | None:
    """The data set of this key if the cache has it; raw files are not needed."""
    folder = cache.find_folder(data.cache_dir, _name(data, key))
    if folder is None:
        return None
    return PreparedData(key, folder, json.loads((folder / report.FILE).read_text()))


def _name(data: ml_collections.ConfigDict, key: str) -> str:
    # The key says which users, items and order; the version, what is stored of them.
    return f"datasets/{data.source}-{key}-{records.VERSION}"


def _prepare_into(folder: Path, files: RawFiles, data: ml_collections.ConfigDict, ray: Any) -> None:
    print(f"Preparing {data.source} from {files.origin} ...", flush=True)
    part = cache.incomplete(folder)
    part.mkdir(parents=True)
    try:
        _write(part, files, data, ray)
        digests.write(part)
        os.replace(part, folder)
    except OSError as error:
        # Another process may have been faster; its result is the same.
        if not (folder / report.FILE).exists():
            if error.filename is None and error.errno is not None:
                raise OSError(error.errno, os.strerror(error.errno), str(part)) from error
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(part: Path, files: RawFiles, data: ml_collections.ConfigDict, ray: Any) -> None:
    source, dump = SOURCES[data.source], Dump(files, data, Counter[str]())
    times, on_ray = TimeRange(files.interactions, numbers=not data.timestamp_format), None
    scratch = part / "scratch"
    if ray is None:
        sequences = _sequences(source, dump, scratch, times)
    else:
        on_ray = RayPreparation(ray)
        sequences = on_ray.sequences(data.source, dump, times)
    described = source.items(dump, sequences.item_ids)
    described = with_ids_of_interactions(described, sequences.item_ids, dump)
    fields = data.text_fields or [n for n in described.columns if n not in ("item", "image")]
    items, item_counts = _catalogue(
        sequences.item_ids, describe(described, fields, data.text_field_length)
    )
    more = [n for n, on in (("event", data.target_events), ("weight", data.weight_column)) if on]
    _require_targets(data, sequences.events, files.interactions)
    builder.write(sequences, items, part, on_ray.write_users if on_ray else None, more)
    fields = {}
    if data.user_fields:
        fields["profiles"] = profiles.write_profiles(part / builder.USERS, dump)
    shutil.rmtree(scratch, ignore_errors=True)
    settings = {k: v for k, v in data.to_dict().items() if k not in _NOT_IN_KEY}
    values = {"origin": files.origin, "settings": settings} | sequences.report | item_counts
    report.write(values | fields | times.report() | dict(dump.counts), sequences, part)


def _require_targets(
    data: ml_collections.ConfigDict, events: Sequence[str], interactions: Path
) -> None:
    """Raises UserError if an event that is to be predicted does not occur."""
    missing = [name for name in data.target_events if name not in events]
    if missing:
        raise UserError(
            f"--config.data.target_events names {shown(missing[0])!r}, which no row of "
            f"{interactions} has. Its events are {shown(', '.join(events), 300)}."
        )


def _sequences(source: Source, dump: Dump, scratch: Path, times: TimeRange) -> Sequences:
    """The sequences, prepared by this process; their parts lie in `scratch`."""
    scratch.mkdir()
    data = dump.data
    interactions = collect(
        _with_progress(times.checked(source.interactions(dump))),
        scratch,
        tie_seed=data.tie_seed,
        drop_repeats=data.drop_repeats,
        targets=data.target_events,
    )
    return build_sequences(
        interactions,
        min_user_interactions=data.min_user_interactions,
        min_item_interactions=data.min_item_interactions,
        core_before=data.core_before,
    )


def _with_progress(chunks: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("Reading interactions", total=None)
        for chunk in chunks:
            progress.advance(task, chunk.height)
            yield chunk


def _catalogue(ids: pl.Series, described: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, float]]:
    """The items of the catalogue, in its order, and counts for the report."""
    items = pl.DataFrame({"item": ids}).join(
        described, on="item", how="left", maintain_order="left"
    )
    has_row = items["title"].is_not_null()
    items = items.with_columns(pl.col("title", "text", "image").fill_null(""))
    no_text = items["text"] == ""
    # URLs are not fetched: an item with only a URL has no picture.
    no_image = (items["image"] == "") | items["image"].str.contains("://", literal=True)
    return items, {
        "items_without_a_row_in_the_item_file": int((~has_row).sum()),
        "items_without_text": int(no_text.sum()),
        "items_without_content": int((no_text & no_image).sum()),
        "share_of_items_with_text": 1.0 - float(no_text.mean()),  # type: ignore[arg-type]
        "share_of_items_with_image": 1.0 - float(no_image.mean()),  # type: ignore[arg-type]
        "item_rows_without_interactions": described.height - int(has_row.sum()),
    }


def _key(files: RawFiles, data: ml_collections.ConfigDict) -> str:
    settings = {k: v for k, v in data.to_dict().items() if k not in _NOT_IN_KEY}
    if not data.target_events:  # data without them keeps the keys that it had before
        del settings["target_events"], settings["event_column"]
    if not data.weight_column:
        del settings["weight_column"]
    for name in ("user_fields", "core_before"):
        if not data[name]:
            del settings[name]
    parts = [
        _VERSION,
        SOURCES[data.source].version,
        files.layout,
        _sha256(files.interactions),
        _sha256(files.items),
        files.images is not None and _digest(sorted(files.images)),
        settings,
        *([_sha256(files.users)] if files.users else []),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _sha256(path: Path) -> str | list[str]:
    """Of a file; of each file of a folder, whose names and order do not count."""
    if path.is_file():
        return fetching.file_sha256(path)
    return sorted(fetching.file_sha256(own) for own in part_files(path))


def _digest(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
