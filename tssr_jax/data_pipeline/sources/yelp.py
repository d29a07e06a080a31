"""Yelp's open dataset: https://business.yelp.com/data/resources/open-dataset/.

    yelp_academic_dataset_review.json     {"user_id", "business_id", "stars", "date", "text", ...}
    yelp_academic_dataset_business.json   {"business_id", "name", "city", "state", "categories"}

One object a line; the files may be compressed (.gz). Every review is an interaction. In older
editions `date` is a day and `categories` a list; in newer ones `date` has seconds, and `categories`
is one string with commas, or null. Fields for `data.text_fields`: name, categories, city, state.
"""

from collections.abc import Iterator

import ml_collections
import polars as pl

from tssr_jax.data_pipeline.sources import base, descriptions, json_lines, values
from tssr_jax.data_pipeline.texts import has_text

_COLUMNS = values.Columns("user_id", "business_id", "date")


class Yelp:
    """Reads reviews and businesses from `data.raw_dir`."""

    version = 2
    more: tuple[str, ...] = ()

    def locate(self, data: ml_collections.ConfigDict) -> base.RawFiles:
        """Finds the two files."""
        names = (f"yelp_academic_dataset_{what}.json" for what in ("review", "business"))
        choices = [[name, f"{name}.gz"] for name in names]
        reviews, businesses = base.find_files(data, choices, "Source 'yelp'")
        return base.RawFiles(data.raw_dir, "academic", reviews, businesses)

    def interactions(self, dump: base.Dump) -> Iterator[pl.DataFrame]:
        """See `Source`."""
        path = dump.files.interactions
        bad_lines = json_lines.BadLines(path, dump.data.max_bad_lines, dump.counts)
        chunks = json_lines.read_chunks(bad_lines, _COLUMNS.needed)
        yield from values.parse_interactions(chunks, _COLUMNS, path)

    def items(self, dump: base.Dump, wanted: pl.Series) -> pl.DataFrame:
        """See `Source`."""
        bad_lines = json_lines.BadLines(dump.files.items, dump.data.max_bad_lines, dump.counts)
        records = json_lines.read_records(bad_lines, "business_id", wanted)
        rows, lines = [], []
        for line, record in records:
            lines.append(line)
            rows.append(
                (
                    record["business_id"],
                    *(join(record.get(name)) for name in ("name", "categories", "city", "state")),
                )
            )
        names = ("item", "name", "categories", "city", "state")
        table = pl.DataFrame(rows, dict.fromkeys(names, pl.String), orient="row")
        return descriptions.unique_items(table, dump, lines)


def join(value: object, separator: str = ", ") -> str | None:
    """The texts and numbers of a value, and of the lists and objects in it; None without any."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        parts = [part for part in (join(v, separator) for v in value) if part and has_text(part)]
        return separator.join(dict.fromkeys(parts)) or None
    return None
