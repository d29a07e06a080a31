"""MIND, Microsoft's news data: https://msnews.github.io/.

    behaviors.tsv   impression id, user, time, history (ids, oldest first), impressions (ID-CLICKED)
    news.tsv        id, category, subcategory, title, abstract, URL, entities of title, of abstract

No header lines; the files may be compressed (.gz). A user's sequence is the history of the first
impression, then the clicks of all impressions. Clicks of the history have no times: each is put one
second before the next, the last one a second before the first impression. Fields
for `data.text_fields`: title, category, subcategory, abstract.
"""

from collections.abc import Iterator

import ml_collections
import polars as pl

from tssr_jax.data_pipeline.sources import base, tables

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
_TIME = "%m/%d/%Y %I:%M:%S %p"
_HINT = "Is this the file as MIND publishes it?"


class Mind:
    """Reads behaviors.tsv and news.tsv from `data.raw_dir`."""

    version = 1

    def locate(self, data: ml_collections.ConfigDict) -> base.RawFiles:
        """Finds the two files."""
        choices = [[f"{name}.tsv", f"{name}.tsv.gz"] for name in ("behaviors", "news")]
        behaviors, news = base.find_files(data, choices, "Source 'mind'")
        return base.RawFiles(data.raw_dir, "mind", behaviors, news)

    def interactions(self, dump: base.Dump) -> Iterator[pl.DataFrame]:
        """See `Source`."""
        path = dump.files.interactions
        impressions = []
        for line, table in tables.read_chunks(
            path, "\t", columns=_BEHAVIORS, wanted=_BEHAVIORS, hint=_HINT, quoted=False
        ):
            time = base.parse_timestamps(table, "time", path, line, _TIME)
            user = base.parse_ids(table, "user", path, line)
            impressions.append(table.with_columns(user=user, time=time))
        whole = pl.concat(impressions).sort("time", maintain_order=True)
        dump.counts["impressions_read"] += whole.height
        first = whole.unique("user", keep="first", maintain_order=True)
        history = first.select(
            "user",
            item=pl.col("history").fill_null("").str.split(" "),
            timestamp="time",
        )
        places = pl.int_ranges(pl.col("item").list.len(), 0, -1, dtype=pl.Int64)
        history = history.with_columns(back=places).explode("item", "back")
        yield _named(history.with_columns(pl.col("timestamp") - base.TICKS * pl.col("back")))
        shown = whole.select(
            "user",
            item=pl.col("impressions").fill_null("").str.split(" "),
            timestamp="time",
        ).explode("item")
        clicked = shown.filter(pl.col("item").str.ends_with("-1"))
        yield _named(clicked.with_columns(pl.col("item").str.strip_suffix("-1")))

    def items(self, dump: base.Dump, wanted: pl.Series) -> pl.DataFrame:
        """See `Source`."""
        del wanted
        path = dump.files.items
        table = tables.read_table(path, "\t", columns=_NEWS, quoted=False)
        table = table.with_columns(item=base.parse_ids(table, "item", path, 1))
        fields = ("item", "title", "category", "subcategory", "abstract")
        table, lines = table.select(fields), range(1, 1 + table.height)
        return base.unique_items(table, dump, lines)


def _named(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(pl.col("item") != "").select("user", "item", "timestamp")
