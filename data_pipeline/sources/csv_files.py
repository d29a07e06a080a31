"""One's own data: a folder with interactions.csv and items.csv.

    interactions.csv   user,item,timestamp    one row for each interaction, in any order
    items.csv          item,title,...         one row for each item

Names of columns and the columns that make up an item's text are set in the config (section
`data`). Timestamps are seconds since 1970 or ISO dates. HTML entities in texts are decoded.
"""

import html
from pathlib import Path

import ml_collections
import polars as pl

from data_pipeline.sources import base

_FIRST_LINE = 2  # line 1 is the header


class CsvSource:
    """Reads interactions.csv and items.csv from `data.raw_dir`."""

    version = 1

    def locate(self, data: ml_collections.ConfigDict) -> base.RawFiles:
        """Finds the two files."""
        if not data.raw_dir:
            raise base.UserError(
                "The source 'csv' needs a folder: --config=configs/csv.py:FOLDER, where FOLDER "
                "holds interactions.csv and items.csv."
            )
        interactions, items = base.require_files(
            data, ["interactions.csv", "items.csv"], "Source 'csv'"
        )
        return base.RawFiles(data.raw_dir, "csv", interactions, items)

    def read(self, files: base.RawFiles, data: ml_collections.ConfigDict) -> base.RawData:
        """Reads both files whole."""
        return base.RawData(
            _read_interactions(files.interactions, data), *_read_items(files.items, data)
        )


def _read_interactions(path: Path, data: ml_collections.ConfigDict) -> pl.DataFrame:
    table = base.read_table(path)
    names = [data.user_column, data.item_column, data.timestamp_column]
    base.require_columns(
        table, names, path, "Rename it, or set --config.data.user_column, item_column or "
        "timestamp_column to the name that it has."
    )  # fmt: skip
    user, item = (base.parse_ids(table, name, path, _FIRST_LINE) for name in names[:2])
    timestamp = base.parse_timestamps(table, names[2], path, _FIRST_LINE)
    return pl.DataFrame({"user": user, "item": item, "timestamp": timestamp})


def _read_items(path: Path, data: ml_collections.ConfigDict) -> tuple[pl.DataFrame, dict[str, int]]:
    table = base.read_table(path)
    names = list(data.text_columns)
    base.require_columns(
        table, [data.item_column, *names], path, "Rename it, or set --config.data.item_column or "
        "--config.data.text_columns."
    )  # fmt: skip
    texts = [
        table[name].fill_null("").map_elements(html.unescape, pl.String).str.strip_chars()
        for name in names
    ]
    items = pl.DataFrame(
        {
            "item": base.parse_ids(table, data.item_column, path, _FIRST_LINE),
            "title": texts[0],
            "text": join_texts(texts),
        }
    )
    items, repeated = base.unique_items(items, path, _FIRST_LINE)
    return items, {"repeated_item_rows": repeated}


def join_texts(parts: list[pl.Series]) -> pl.Series:
    """Joins the non-empty parts of each row by ". "."""
    renamed = [pl.when(part != "").then(part).alias(str(i)) for i, part in enumerate(parts)]
    return pl.select(pl.concat_str(renamed, separator=". ", ignore_nulls=True)).to_series()
