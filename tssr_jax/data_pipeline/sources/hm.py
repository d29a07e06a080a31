"""H&M: www.kaggle.com/competitions/h-and-m-personalized-fashion-recommendations/data.

    transactions_train.csv   t_dat,customer_id,article_id,price,sales_channel_id
    articles.csv             article_id,product_code,prod_name,...,detail_desc (25 columns)
    customers.csv            customer_id,club_member_status,age,... (for `data.user_fields`)
    images/010/0108775015.jpg   first three digits, then all ten; some articles have none

The tables may be compressed (.gz). Article ids have ten digits; leading zeros that a program has
dropped are restored, and a ".0" that one has added is removed. An unnamed index column in front is
ignored. All columns of articles.csv are fields for `data.text_fields`.
"""

from collections.abc import Iterator

import ml_collections
import polars as pl
from etils import epath

from tssr_jax.data_pipeline.sources import base, descriptions, tables, values
from tssr_jax.data_pipeline.sources.users import read_users

_DIGITS = 10
_COLUMNS = values.Columns("customer_id", "article_id", "t_dat")
_HINT = "Is this the file as Kaggle publishes it?"


class Hm:
    """Reads the competition's files from `data.raw_dir`."""

    version = 1
    more: tuple[str, ...] = ("users",)

    def locate(self, data: ml_collections.ConfigDict) -> base.RawFiles:
        """Finds the tables, and the images if there are some."""
        names = ["transactions_train.csv", "articles.csv"]
        if data.user_fields:
            names.append("customers.csv")
        choices = [[name, f"{name}.gz"] for name in names]
        transactions, articles, *more = base.find_files(data, choices, "Source 'hm'")
        images = epath.Path(data.raw_dir).expanduser() / "images"
        found = _names_of_images(images) if images.is_dir() else None
        users = more[0] if more else None
        return base.RawFiles(data.raw_dir, "kaggle", transactions, articles, found, users)

    def interactions(self, dump: base.Dump) -> Iterator[pl.DataFrame]:
        """See `Source`."""
        path = dump.files.interactions
        chunks = tables.read_chunks(path, needed=_COLUMNS.needed, hint=_HINT)
        for chunk in values.parse_interactions(chunks, _COLUMNS, path):
            yield chunk.with_columns(_with_all_digits(pl.col("item")))

    def items(self, dump: base.Dump, wanted: pl.Series) -> pl.DataFrame:
        """See `Source`."""
        del wanted
        path = dump.files.items
        rows = tables.read_table(path, needed=("article_id",), hint=_HINT)
        ids = values.parse_ids(rows, "article_id", path).alias("item")
        table = rows.table.select(ids, pl.exclude("article_id", ""))
        table = table.with_columns(_with_all_digits(pl.col("item")))
        items = descriptions.unique_items(table, dump, rows.lines)
        there = dump.files.images or ()
        images = [
            f"images/{i[:3]}/{i}.jpg" if f"{i[:3]}/{i}" in there else None for i in items["item"]
        ]
        return items.with_columns(image=pl.Series(images, dtype=pl.String))

    def users(self, dump: base.Dump) -> pl.DataFrame:
        """See `Source`."""
        return read_users(dump, "customer_id", hint=_HINT)


def _with_all_digits(ids: pl.Expr) -> pl.Expr:
    """Ids of ten digits; ".0" behind a number is removed."""
    return ids.str.replace(r"^([0-9]+)\.0+$", "$1").str.zfill(_DIGITS)


def _names_of_images(folder: epath.Path) -> frozenset[str]:
    """Like "010/0108775015", for all .jpg files one folder down."""
    return frozenset(
        f"{below.name}/{path.stem}"
        for below in folder.iterdir()
        if below.is_dir()
        for path in below.iterdir()
        if path.suffix == ".jpg"
    )
