"""Descriptions of items: one for each, and under the ids that interactions use."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from tssr_jax.data_pipeline.sources.base import Dump
from tssr_jax.data_pipeline.sources.ids import DIFFERENCES, ID, NUMBER
from tssr_jax.errors import UserError, shown

_ROW = "\0row"  # no file's column is called that
_MOST_NAMED = 3


def unique_items(
    items: pl.DataFrame, dump: Dump, lines: Sequence[int] | np.ndarray
) -> pl.DataFrame:
    """Keeps one row for each item, and counts the others.

    Args:
      items: column `item`, and fields.
      dump: names the file, says what happens to rows that disagree (`data.repeated_items`), and
        gets the counts "item_rows_repeated" and "item_rows_that_disagree".
      lines: line number of each row.

    Raises:
      UserError: if two rows describe one item differently and `data.repeated_items` is "error".
    """
    numbered = items.with_row_index(_ROW)
    distinct = numbered.unique(items.columns, keep="first", maintain_order=True)
    clash = distinct.filter(pl.col("item").is_duplicated())
    dump.counts["item_rows_repeated"] += items.height - distinct.height
    if clash.height and dump.data.repeated_items == "error":
        first, second = clash.filter(pl.col("item") == clash["item"][0]).rows(named=True)[:2]
        field = next(name for name in items.columns if first[name] != second[name])
        raise UserError(
            f"{dump.files.items}: item {shown(first['item'], 60)!r} is described differently in "
            f"lines {lines[first[_ROW]]} and {lines[second[_ROW]]} ({field}: "
            f"{shown(first[field], 80)!r} and {shown(second[field], 80)!r}). Keep one row for each "
            "item, or set --config.data.repeated_items=first."
        )
    kept = distinct.unique("item", keep="first", maintain_order=True)
    dump.counts["item_rows_that_disagree"] += distinct.height - kept.height
    return kept.drop(_ROW)


def with_ids_of_interactions(items: pl.DataFrame, wanted: pl.Series, dump: Dump) -> pl.DataFrame:
    """The descriptions, with ids as interactions write them.

    Ids that are one number, as "3", "003" and "3.0" are, are taken as one. If interactions write
    some of their ids in two such ways, that is told: they stay two items.

    Args:
      items: column `item` (unique), and fields.
      wanted: ids of the interactions' items.
      dump: names the files, and gets the count "items_whose_id_was_mended".

    Raises:
      UserError: if more than half of the wanted items have no description; names an id of each.
    """
    _tell_of_two_ways(wanted, dump)
    items = _mended(items, wanted, dump)
    missing = wanted.to_frame("item").join(items, on="item", how="anti")
    if missing.is_empty():
        return items
    others = items.select("item").join(wanted.to_frame("item"), on="item", how="anti")
    found = {name: _alike(missing, others, form) for name, form in DIFFERENCES.items()}
    difference, alike = max(found.items(), key=lambda named: named[1].height)
    pair, files = alike.row(0) if alike.height else None, dump.files
    if 2 * missing.height > wanted.len():
        if pair:
            told = f"Ids differ {difference}: {_ascii(pair[0])} there, {_ascii(pair[1])} here."
        else:
            told = f"For example {_ascii(missing['item'].min())} has no row here"
            if others.height:
                told += f", and {_ascii(others['item'].min())} has no interaction"
            told += "."
        raise UserError(
            f"{files.items} describes {wanted.len() - missing.height:,} of {wanted.len():,} items "
            f"of {files.interactions}. {told} Write ids alike in both files; as they are, most "
            "descriptions would be lost."
        )
    if pair:
        named = "; ".join(
            f"{_ascii(one)} and {_ascii(other)}" for one, other in alike[:_MOST_NAMED].rows()
        )
        print(
            f"{files.interactions} and {files.items} write ids differently, {difference}: "
            f"{alike.height:,} items have no description for that reason ({named}).",
            flush=True,
        )
    return items


def _ascii(item: object) -> str:
    """An id for a message, with escapes for what may not be seen."""
    return shown(ascii(item), 50)


def _tell_of_two_ways(wanted: pl.Series, dump: Dump) -> None:
    """Tells of ids of interactions that are one number."""
    numbers = wanted.to_frame("item").with_columns(number=NUMBER).drop_nulls("number")
    several = numbers.filter(pl.col("number").is_duplicated()).sort("number", "item")
    if several.height:
        first, second = several["item"][:2]
        print(
            f"{dump.files.interactions} writes ids of items in two ways: {_ascii(first)} and "
            f"{_ascii(second)} are two items, and {several.height:,} ids are like that. If they "
            "are one, write them alike.",
            flush=True,
        )


def _mended(items: pl.DataFrame, wanted: pl.Series, dump: Dump) -> pl.DataFrame:
    missing = wanted.to_frame("item").join(items, on="item", how="anti")
    others = items.select("item").join(wanted.to_frame("item"), on="item", how="anti")
    alike = _alike(missing, others, NUMBER)
    alike = alike.filter(ID.is_unique() & pl.col("other").is_unique())
    if alike.is_empty():
        return items
    first, second = alike.row(0)
    print(
        f"{dump.files.interactions} and {dump.files.items} write ids of items differently: "
        f"{shown(first)!r} there, {shown(second)!r} here. They are taken as one, for "
        f"{alike.height:,} items.",
        flush=True,
    )
    dump.counts["items_whose_id_was_mended"] += alike.height
    new = alike.rename({"item": "new", "other": "item"})
    joined = items.join(new, on="item", how="left", maintain_order="left")
    return joined.with_columns(item=pl.coalesce("new", "item")).drop("new")


def _alike(missing: pl.DataFrame, others: pl.DataFrame, form: pl.Expr) -> pl.DataFrame:
    """Pairs `item`, `other` of ids that have one form."""
    of_missing, of_others = (ids.with_columns(form=form) for ids in (missing, others))
    pairs = of_missing.join(of_others, on="form", maintain_order="left", suffix="_other")
    return pairs.select("item", other="item_other").sort("item", "other")
