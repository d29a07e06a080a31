"""Categories of items, such as brands and genres, as rows of ones and zeros.

The modality's kernel has a learnt vector for each category; an item reads the sum of its own. The
columns of `content.category_fields` may hold several values in a cell, separated by "|", ";" or
",". A value that fewer than `LEAST` items have, or that is not among the `MOST` most frequent of
all, counts as another value of its field; so does one that only new items have.
"""

import copy
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import ml_collections
import numpy as np
import polars as pl

from tssr_jax.content.blocks import FeatureTable
from tssr_jax.data_pipeline.sources import SOURCES, Dump
from tssr_jax.data_pipeline.sources.descriptions import with_ids_of_interactions
from tssr_jax.data_pipeline.sources.values import spelled
from tssr_jax.errors import UserError, shown
from tssr_jax.parallel import processes

LEAST, MOST = 5, 1_000
_SEPARATORS = r"[|;,]"
_ITEM, LISTS = "item", "categories"


class Categories(NamedTuple):
    """The categories of a catalogue.

    Attributes:
      names: "FIELD=VALUE" of each column of the features; "FIELD=" stands for all other values.
      features: rows [num_items + 1, len(names)] of ones and zeros.
    """

    names: tuple[str, ...]
    features: FeatureTable


def item_categories(
    item_ids: Sequence[str], data: ml_collections.ConfigDict, fields: Sequence[str]
) -> Categories:
    """Reads the categories of a catalogue from the items' raw file.

    Args:
      item_ids: id of item i + 1 at index i.
      data: section `data` of the config; says where the raw files lie.
      fields: columns of the items' file.

    Raises:
      UserError: if the file has no such column, or no value is frequent enough.
    """
    own = copy.deepcopy(data)
    own.text_fields = tuple(fields)
    source = SOURCES[data.source]
    wanted = pl.Series(_ITEM, item_ids, pl.String)
    dump = Dump(source.locate(own), own, Counter())
    described = source.items(dump, wanted)
    missing = [name for name in fields if name not in described.columns]
    if missing:
        there = [name for name in described.columns if name not in ("item", "image")]
        raise UserError(
            f"--config.content.category_fields names {shown(missing[0])!r}; source "
            f"{data.source!r} has the fields {shown(', '.join(there), 300)}."
        )
    described = with_ids_of_interactions(described, wanted, dump)
    table = described.select(_ITEM, values_of(fields))
    rows = wanted.to_frame().join(table, on=_ITEM, how="left", maintain_order="left")
    counts = rows[LISTS].explode().drop_nulls().value_counts(sort=False, name="n")
    frequent = counts.filter(pl.col("n") >= LEAST).sort("n", LISTS, descending=[True, False])
    names = (*frequent[LISTS].head(MOST), *(f"{name}=" for name in fields))
    if frequent.is_empty():
        raise UserError(
            f"{dump.files.items}: no value of {', '.join(fields)} occurs in at least {LEAST} items "
            "(--config.content.category_fields). Are these categories?"
        )
    table_of = multi_hot(rows[LISTS], names)
    if processes.is_first():
        without = int((~table_of.any(axis=1)).sum())
        print(
            f"{len(names) - len(fields):,} categories of {', '.join(fields)}; "
            f"{counts.height - len(names) + len(fields):,} rarer ones count as others; "
            f"{without:,} of {len(item_ids):,} items have none.",
            flush=True,
        )
    key = hashlib.sha256("\0".join(names).encode() + table_of.tobytes()).hexdigest()[:20]
    return Categories(names, FeatureTable(key, np.pad(table_of, ((1, 0), (0, 0)))))


def values_of(fields: Sequence[str]) -> pl.Expr:
    """The column `categories` of a table with these: lists of distinct "FIELD=VALUE"."""
    parts = [
        pl.col(name)
        .cast(pl.String)
        .fill_null("")
        .str.replace_all(_SEPARATORS, "|")
        .str.split("|")
        .list.eval(pl.element().map_elements(spelled, return_dtype=pl.String).drop_nulls())
        .list.eval(pl.lit(f"{name}=") + pl.element())
        for name in fields
    ]
    return pl.concat_list(parts).list.unique(maintain_order=True).alias(LISTS)


def multi_hot(lists: pl.Series, names: Sequence[str]) -> np.ndarray:
    """float32 [items, len(names)] of lists of "FIELD=VALUE"; null has none."""
    place = {name: i for i, name in enumerate(names)}
    table = np.zeros((len(lists), len(names)), np.float32)
    for row, own in enumerate(lists.to_list()):
        for name in own or ():
            other = name[: name.index("=") + 1]
            table[row, place.get(name, place[other])] = 1.0
    return table
