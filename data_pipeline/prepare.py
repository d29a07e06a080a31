"""Prepares a data set once and finds it again: raw files -> sequences -> TFDS, keyed by content.

The key hashes the raw files and every setting that the result depends on, so that a change of
either makes a new data set and never mixes with an old one.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import ml_collections
import polars as pl

from data_pipeline import builder, fetching
from data_pipeline.sequences import Sequences, build_sequences
from data_pipeline.sources import SOURCES, RawData, RawFiles
from data_pipeline.tensorflow_cpu import tf
from tssr_jax.errors import UserError

_VERSION = 1
_REPORT = "report.json"
# Settings that do not change what is prepared: places, and what the key holds as file contents.
_NOT_IN_KEY = ("cache_dir", "raw_dir")


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """One data set, ready for the input pipeline.

    Attributes:
      key: identifies raw files and settings.
      items: int32 tensor [num_interactions], 1..num_items, oldest first within a user.
      offsets: int64 tensor [num_users + 1]; user u owns items[offsets[u]:offsets[u + 1]].
      user_ids: the owner's id of user u at index u.
      item_ids, titles, texts: of item i at index i - 1.
      report: the preparation report.
    """

    key: str
    items: tf.Tensor
    offsets: tf.Tensor
    user_ids: list[str]
    item_ids: list[str]
    titles: list[str]
    texts: list[str]
    report: dict

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """Size of the catalogue; item ids are 1..num_items."""
        return len(self.item_ids)


def prepare(data: ml_collections.ConfigDict) -> PreparedData:
    """Loads the data set that section `data` of the config describes, preparing it if needed.

    Raises:
      UserError: if the source is unknown, or its files are missing or malformed.
    """
    if data.source not in SOURCES:
        raise UserError(
            f"--config.data.source is {data.source!r}; known sources: {', '.join(sorted(SOURCES))}."
        )
    cache_dir = Path(data.cache_dir).expanduser()
    files = SOURCES[data.source].locate(data)
    key = _key(files, data)
    folder = cache_dir / "datasets" / f"{data.source}-{key}"
    if not (folder / _REPORT).exists():
        _prepare_into(folder, files, data)
    return _load(folder, key)


def report_lines(report: dict) -> list[tuple[str, str]]:
    """The report as (name, value) pairs for people."""
    return [
        (name.replace("_", " "), f"{value:,.3g}" if isinstance(value, float) else f"{value:,}")
        for name, value in report.items()
        if isinstance(value, int | float)
    ]


def _prepare_into(folder: Path, files: RawFiles, data: ml_collections.ConfigDict) -> None:
    print(f"Preparing {data.source} from {files.origin} ...", flush=True)
    raw = SOURCES[data.source].read(files, data)
    sequences = build_sequences(
        raw.interactions,
        min_user_interactions=data.min_user_interactions,
        min_item_interactions=data.min_item_interactions,
        tie_seed=data.tie_seed,
    )
    items, counts = _describe_items(sequences, raw)
    settings = {k: v for k, v in data.to_dict().items() if k not in _NOT_IN_KEY}
    report = {"origin": files.origin, "settings": settings} | sequences.report | counts
    part = folder.with_name(f"{folder.name}.incomplete-{os.getpid()}")
    part.mkdir(parents=True)
    try:
        builder.write(sequences, items, part)
        (part / _REPORT).write_text(json.dumps(report, indent=2) + "\n")
        os.replace(part, folder)
    except OSError:
        # Another process may have been faster; its result is the same.
        if not (folder / _REPORT).exists():
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _describe_items(sequences: Sequences, raw: RawData) -> tuple[pl.DataFrame, dict[str, int]]:
    """Title and text of each item of the catalogue, in its order, and counts for the report."""
    catalogue = pl.DataFrame({"item": pl.Series(sequences.item_ids, dtype=pl.String)})
    items = catalogue.join(raw.items, on="item", how="left", maintain_order="left")
    described = items["title"].is_not_null()
    items = items.with_columns(pl.col("title", "text").fill_null(""))
    return items, raw.counts | {
        "items_without_a_row_in_the_item_file": int((~described).sum()),
        "items_without_text": int((items["text"].str.strip_chars() == "").sum()),
        "item_rows_without_interactions": raw.items.height - int(described.sum()),
    }


def _load(folder: Path, key: str) -> PreparedData:
    user_ids, items, offsets = builder.read_users(folder)
    columns = builder.read_items(folder)
    return PreparedData(
        key=key,
        items=items,
        offsets=offsets,
        user_ids=user_ids,
        item_ids=columns["item_id"],
        titles=columns["title"],
        texts=columns["text"],
        report=json.loads((folder / _REPORT).read_text()),
    )


def _key(files: RawFiles, data: ml_collections.ConfigDict) -> str:
    settings = {k: v for k, v in data.to_dict().items() if k not in _NOT_IN_KEY}
    parts = [
        _VERSION,
        SOURCES[data.source].version,
        files.layout,
        fetching.file_sha256(files.interactions),
        fetching.file_sha256(files.items),
        settings,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
