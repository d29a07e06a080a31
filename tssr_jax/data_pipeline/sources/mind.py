"""MIND, Microsoft's news data: https://msnews.github.io/.

    behaviors.tsv   impression id, user, time, history (ids, oldest first), impressions (ID-CLICKED)
    news.tsv        id, category, subcategory, title, abstract, URL, entities of title, of abstract

No header lines; the files may be compressed (.gz). The impression id may be missing, and what
follows the abstract. A user's sequence is the history of the first
impression, then the clicks of all impressions. Clicks of the history have no times: each is put one
second before the next, the last one a second before the first impression. Fields
for `data.text_fields`: title, category, subcategory, abstract.
"""

from collections.abc import Iterator
from pathlib import Path

import ml_collections
import polars as pl

from tssr_jax.data_pipeline.sources import base, descriptions, tables, values
from tssr_jax.data_pipeline.sources.delimited import Format
from tssr_jax.data_pipeline.sources.text_files import read_blocks
from tssr_jax.errors import UserError, shown

_BEHAVIORS = ("impression", "user", "time", "history", "impressions")
_NEWS = (
    "item",
    "category",
    "subcategory",
    "title",
    "abstract",
    "url",
    "title_entities",
    "entities",
)
# Items of an impression, separated by spaces, each with "-1" or "-0".
_LABELLED = r"^ *[^\s,]+-[01](?: +[^\s,]+-[01])* *$"
_TIME = "%m/%d/%Y %I:%M:%S %p"
_HINT = "Is this the file as MIND publishes it?"


class Mind:
    """Reads behaviors.tsv and news.tsv from `data.raw_dir`."""

    version = 1
    more: tuple[str, ...] = ()

    def locate(self, data: ml_collections.ConfigDict) -> base.RawFiles:
        """Finds the two files."""
        choices = [[f"{name}.tsv", f"{name}.tsv.gz"] for name in ("behaviors", "news")]
        behaviors, news = base.find_files(data, choices, "Source 'mind'")
        return base.RawFiles(data.raw_dir, "mind", behaviors, news)

    def interactions(self, dump: base.Dump) -> Iterator[pl.DataFrame]:
        """See `Source`."""
        path = dump.files.interactions
        columns = _columns(path, _BEHAVIORS, _BEHAVIORS[1:])
        form = Format("\t", columns, quoted=False)
        impressions = []
        for rows in tables.read_chunks(path, form, needed=_BEHAVIORS[1:]):
            time = values.parse_timestamps(rows, "time", path, _TIME)
            user = values.parse_ids(rows, "user", path)
            line = pl.Series("line", rows.lines)
            impressions.append(rows.table.with_columns(line, user=user, time=time))
        whole = pl.concat(impressions).sort("time", maintain_order=True)
        labelled = whole["impressions"].str.contains(_LABELLED)  # null where there is none
        if not labelled.any():
            raise UserError(
                f"{path} does not tell which items were clicked: no impression looks like N1-1 or "
                "N1-0. These are probably the test behaviors, which nothing can be learnt from; "
                "take those of the training or the validation set."
            )
        if not labelled.all():
            first = whole.filter(~labelled)
            raise UserError(
                f"{path}, line {first['line'][0]}: not every item of the impressions "
                f"{shown(repr(first['impressions'][0]))} tells by -1 or -0 whether it was clicked; "
                f"{first.height:,} of {whole.height:,} lines are like that. Are test behaviors "
                "among those of training?"
            )
        dump.counts["impressions_read"] += whole.height
        earliest = whole.unique("user", keep="first", maintain_order=True)
        history = earliest.select(
            "user",
            item=pl.col("history").fill_null("").str.split(" "),
            timestamp="time",
        )
        places = pl.int_ranges(pl.col("item").list.len(), 0, -1, dtype=pl.Int64)
        history = history.with_columns(back=places).explode("item", "back")
        yield _named(history.with_columns(pl.col("timestamp") - values.TICKS * pl.col("back")))
        offered = whole.select(
            "user",
            item=pl.col("impressions").fill_null("").str.split(" "),
            timestamp="time",
        ).explode("item")
        clicked = offered.filter(pl.col("item").str.ends_with("-1"))
        yield _named(clicked.with_columns(pl.col("item").str.strip_suffix("-1")))

    def items(self, dump: base.Dump, wanted: pl.Series) -> pl.DataFrame:
        """See `Source`."""
        del wanted
        path = dump.files.items
        # What follows the abstract may be missing, one column after the other.
        columns = _columns(path, *(_NEWS[:width] for width in range(len(_NEWS), 4, -1)))
        rows = tables.read_table(path, Format("\t", columns, quoted=False))
        fields = ("title", "category", "subcategory", "abstract")
        table = rows.table.select(*fields, item=values.parse_ids(rows, "item", path))
        return descriptions.unique_items(table.select("item", *fields), dump, rows.lines)


def _columns(path: Path, *choices: tuple[str, ...]) -> tuple[str, ...]:
    """The choice that has as many columns as the file's first line."""
    first = next(read_blocks(path)).lines()[0].decode()
    if not any(character.isdigit() for character in first):
        raise UserError(
            f"{path} begins with a header line, {shown(repr(first))}; MIND's files have none. "
            "Remove it."
        )
    width = first.count("\t") + 1
    for columns in choices:
        if len(columns) == width:
            return columns
    wanted = "; or ".join(", ".join(columns) for columns in (choices[0], choices[-1]))
    raise UserError(
        f"{path} has {width} columns, separated by tabs, in its first line {shown(repr(first))}. "
        f"Columns must be {wanted}. {_HINT}"
    )


def _named(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(pl.col("item") != "").select("user", "item", "timestamp")
