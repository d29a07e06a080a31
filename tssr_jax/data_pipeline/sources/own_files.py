"""One's own data: a folder with interactions and items, as CSV or as Parquet.

    interactions.csv (.csv.gz, .parquet)   user,item,timestamp   one row each, in any order
    items.csv        (.csv.gz, .parquet)   item,title,...        one row for each item

With `data.user_fields` also users, and those columns:

    users.csv        (.csv.gz, .parquet)   user,...              one row for each user

Interactions may be many files: a folder `interactions` (or `interactions.parquet`, ...) of them, as
Spark writes one.

Names of columns are set in the config (section `data`). Timestamps are seconds since 1970, ISO
dates, or in `data.timestamp_format`. Without `data.text_fields` an item's text is its title,
followed by the columns category, categories, genre and genres, where they exist. A column `image`
holds paths of images below the folder. (URLs are not fetched.)
"""

from collections.abc import Iterator, Sequence

import ml_collections
import polars as pl

from tssr_jax.data_pipeline.sources import base, descriptions, tables, values
from tssr_jax.data_pipeline.sources.users import read_users
from tssr_jax.errors import UserError

_ENDINGS = (".csv", ".csv.gz", ".parquet")
_SEVERAL = "own, a folder of interactions"
_CATEGORIES = ("category", "categories", "genre", "genres")


class OwnFiles:
    """Reads interactions and items from `data.raw_dir`."""

    version = 3
    more = ("event", "weight", "users")

    def locate(self, data: ml_collections.ConfigDict) -> base.RawFiles:
        """Finds the files."""
        if not data.raw_dir:
            raise UserError(
                "The source 'csv' needs a folder: --config=csv:FOLDER (--raw_dir=FOLDER to ask a "
                "run that is trained), where FOLDER holds interactions.csv and items.csv (or "
                ".csv.gz, or .parquet)."
            )
        choices = [[name + end for end in _ENDINGS] for name in ("interactions", "items")]
        choices[0] += [f"interactions{end}/" for end in ("", *_ENDINGS)]
        if data.user_fields:
            choices.append([f"users{end}" for end in _ENDINGS])
        interactions, items, *more = base.find_files(data, choices, "Source 'csv'")
        for path in base.part_files(interactions):
            if not path.name.endswith(_ENDINGS):
                raise UserError(
                    f"{path}: files of interactions end in {', '.join(_ENDINGS)}. Remove it, or "
                    "put a '_' before its name."
                )
        layout = _SEVERAL if interactions.is_dir() else "own"
        users = more[0] if more else None
        return base.RawFiles(data.raw_dir, layout, interactions, items, users=users)

    def interactions(self, dump: base.Dump) -> Iterator[pl.DataFrame]:
        """See `Source`."""
        data = dump.data
        event = data.event_column if data.target_events else ""
        columns = values.Columns(
            *(data.user_column, data.item_column, data.timestamp_column),
            event=event,
            weight=data.weight_column,
        )
        hint = (
            "Rename it, or set --config.data.user_column, item_column or timestamp_column "
            "(event_column, weight_column) to the name that it has."
        )
        several = dump.files.layout == _SEVERAL
        for path in base.part_files(dump.files.interactions):
            chunks = tables.read_chunks(
                path, needed=columns.needed, hint=hint, may_be_empty=several
            )
            form = dump.data.timestamp_format
            yield from values.parse_interactions(chunks, columns, path, form, settable=True)

    def items(self, dump: base.Dump, wanted: pl.Series) -> pl.DataFrame:
        """See `Source`."""
        del wanted
        path, key = dump.files.items, dump.data.item_column
        fields = dump.data.text_fields or ("title",)
        hint = "Rename it, or set --config.data.item_column or --config.data.text_fields."
        rows = tables.read_table(path, needed=(key, *fields), hint=hint)
        if key != "item" and "item" in fields:
            raise UserError(
                f"{path}: --config.data.text_fields can't have 'item', because the ids are in "
                f"column {key!r}. Rename the column 'item'."
            )
        ids = values.parse_ids(rows, key, path)
        table = rows.table.select(ids.alias("item"), pl.exclude(key, "item"))
        items = descriptions.unique_items(table, dump, rows.lines)
        if not dump.data.text_fields:
            image = [name for name in items.columns if name == "image"]
            items = items.select("item", *own_fields(items.columns), *image)
        return items

    def users(self, dump: base.Dump) -> pl.DataFrame:
        """See `Source`."""
        hint = "Rename it, or set --config.data.user_column to the name that it has."
        return read_users(dump, dump.data.user_column, hint=hint)


def own_fields(columns: Sequence[str]) -> tuple[str, ...]:
    """The fields of an item's text if `data.text_fields` is empty."""
    return ("title", *(name for name in _CATEGORIES if name in columns))
