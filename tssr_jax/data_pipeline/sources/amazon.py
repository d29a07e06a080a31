"""Amazon reviews of 2014, 2018 and 2023, one category at a time.

    2014  https://jmcauley.ucsd.edu/data/amazon/links.html
          reviews_CATEGORY_5.json.gz (5-core) or reviews_CATEGORY.json.gz: reviewerID, asin,
          unixReviewTime; meta_CATEGORY.json.gz: Python literals (some copies: JSON): asin, title,
          description, brand, categories [[...]], imUrl
    2018  https://nijianmo.github.io/amazon/
          CATEGORY_5.json.gz or CATEGORY.json.gz: as in 2014; meta_CATEGORY.json.gz: JSON: asin,
          title, description [...], brand, category [...], image or imageURL [...]
    2023  https://amazon-reviews-2023.github.io/
          CATEGORY.jsonl.gz: user_id, parent_asin, timestamp (milliseconds);
          meta_CATEGORY.jsonl.gz: parent_asin, title, description [...], store, main_category,
          categories [...], images [{"large", "hi_res", ...}]

Files may be unpacked (no .gz). `data.edition` is "CATEGORY-YEAR", e.g. "Toys_and_Games-2014".
Fields for `data.text_fields`: title, brand, categories, description. Images are URLs. An item often
has several lines; `data.repeated_items` says what happens if they differ.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import polars as pl

from tssr_jax.data_pipeline.sources import base, descriptions, json_lines, values
from tssr_jax.data_pipeline.sources.yelp import join
from tssr_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Edition:
    """Names of files and fields of one year.

    Attributes:
      layout: is part of the key of prepared data: the year, and a number if reading has changed.
      reviews, meta: names of files.
      user, item, time: names of a review's fields; a description has `item`, too.
      ticks: ticks of the time in a second.
      fields: our names -> names of fields of a description; the first one with a value is read.
    """

    layout: str
    reviews: tuple[str, ...]
    meta: str
    user: str
    item: str
    time: str
    ticks: int
    fields: Mapping[str, tuple[str, ...]]


_REVIEW_2014 = {"user": "reviewerID", "item": "asin", "time": "unixReviewTime", "ticks": 1}
EDITIONS: dict[str, _Edition] = {
    "2014": _Edition(
        layout="2014",
        reviews=("reviews_{}_5.json", "reviews_{}.json"),
        meta="meta_{}.json",
        fields={
            "title": ("title",),
            "brand": ("brand",),
            "categories": ("categories",),
            "description": ("description",),
            "image": ("imUrl",),
        },
        **_REVIEW_2014,  # type: ignore[arg-type]
    ),
    "2018": _Edition(
        layout="2018-2",
        reviews=("{}_5.json", "{}.json"),
        meta="meta_{}.json",
        fields={
            "title": ("title",),
            "brand": ("brand",),
            "categories": ("category",),
            "description": ("description",),
            "image": ("imageURLHighRes", "imageURL", "image"),
        },
        **_REVIEW_2014,  # type: ignore[arg-type]
    ),
    "2023": _Edition(
        layout="2023",
        reviews=("{}.jsonl",),
        meta="meta_{}.jsonl",
        user="user_id",
        item="parent_asin",
        time="timestamp",
        ticks=1000,
        fields={
            "title": ("title",),
            "brand": ("store",),
            "categories": ("categories", "main_category"),
            "description": ("description",),
            "image": ("images",),
        },
    ),
}


class Amazon:
    """Reads one category of one year from `data.raw_dir`."""

    version = 3
    more: tuple[str, ...] = ()

    def locate(self, data: ml_collections.ConfigDict) -> base.RawFiles:
        """Finds reviews and descriptions."""
        category, year = _parts(data.edition)
        edition = EDITIONS[year]
        names = [[form.format(category) for form in edition.reviews]]
        names.append([edition.meta.format(category)])
        choices = [[n for name in some for n in (f"{name}.gz", name)] for some in names]
        reviews, meta = base.find_files(data, choices, f"Source 'amazon', {data.edition}")
        return base.RawFiles(data.raw_dir, edition.layout, reviews, meta)

    def interactions(self, dump: base.Dump) -> Iterator[pl.DataFrame]:
        """See `Source`."""
        path, edition = dump.files.interactions, _edition(dump)
        columns = values.Columns(edition.user, edition.item, edition.time)
        bad_lines = json_lines.BadLines(path, dump.data.max_bad_lines, dump.counts)
        chunks = json_lines.read_chunks(bad_lines, columns)
        yield from values.parse_interactions(chunks, columns, path, ticks=edition.ticks)

    def items(self, dump: base.Dump, wanted: pl.Series) -> pl.DataFrame:
        """See `Source`."""
        edition = _edition(dump)
        bad_lines = json_lines.BadLines(dump.files.items, dump.data.max_bad_lines, dump.counts)
        records = json_lines.read_records(bad_lines, edition.item, wanted)
        rows, lines = [], []
        for line, record in records:
            lines.append(line)
            row = {"item": record[edition.item]}
            for name, sources in edition.fields.items():
                take = _image if name == "image" else _text
                row[name] = next((v for v in (take(record.get(s)) for s in sources) if v), None)
            rows.append(row)
        table = pl.DataFrame(rows, dict.fromkeys(("item", *edition.fields), pl.String))
        return descriptions.unique_items(table, dump, lines)


def _parts(edition: str) -> tuple[str, str]:
    category, _, year = edition.rpartition("-")
    if not category or year not in EDITIONS:
        raise UserError(
            f"--config.data.edition is {edition!r}; it must be CATEGORY-YEAR with a year of "
            f"{', '.join(EDITIONS)}: --config=amazon:toys-2014."
        )
    return category, year


def _edition(dump: base.Dump) -> _Edition:
    return EDITIONS[_parts(dump.data.edition)[1]]


def _text(value: Any) -> str | None:
    """Like `join`; None for a page's script, which is the title of some items of 2018."""
    text = join(value)
    return None if text and "(new Date()).getTime()" in text else text


def _image(value: Any) -> str | None:
    """The first URL of a string, a list of them, or a list of {"hi_res", "large", ...}."""
    if isinstance(value, list):
        return next((url for url in map(_image, value) if url), None)
    if isinstance(value, dict):
        return value.get("hi_res") or value.get("large") or value.get("thumb")
    return value if isinstance(value, str) and value else None
