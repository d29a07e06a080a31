"""Items' texts from the fields of their descriptions, as section `data` of the config asks."""

import html
import re
from collections.abc import Sequence

import polars as pl

from tssr_jax.errors import UserError

SEPARATOR = ". "
# Scripts, styles and comments of a page, then tags.
_NO_TEXT = (
    r"(?is)<script\b.*?</script\s*>|<style\b.*?</style\s*>|<!--.*?-->",
    r"</?[A-Za-z][^<>]*>",
)


def describe(items: pl.DataFrame, fields: Sequence[str], field_length: int) -> pl.DataFrame:
    """Makes `title` and `text` of each item.

    HTML entities are decoded, tags, scripts and comments removed, white space folded. The title is
    the first field, the text the non-empty fields joined by ". ".

    Args:
      items: columns `item` and the fields; null stands for nothing.
      fields: names of the fields of the text, in order.
      field_length: fields are cut to this many characters, at a whole word; 0 keeps all.

    Returns:
      Columns `item`, `title`, `text`, and `image` ("" without one).

    Raises:
      UserError: if a field does not exist.
    """
    missing = [name for name in fields if name not in items.columns]
    if missing or not fields:
        there = [name for name in items.columns if name not in ("item", "image")]
        raise UserError(
            f"--config.data.text_fields is {tuple(fields)}; this source has the fields "
            f"{', '.join(there)}, and at least one of them is needed."
        )
    parts = [_clean(items[name], field_length) for name in fields]
    renamed = [pl.when(part != "").then(part).alias(str(i)) for i, part in enumerate(parts)]
    text = pl.select(pl.concat_str(renamed, separator=SEPARATOR, ignore_nulls=True)).to_series()
    image = items["image"].fill_null("") if "image" in items.columns else pl.lit("")
    return items.select("item", title=parts[0], text=text, image=image)


def has_text(markup: str) -> bool:
    """Whether anything is left of a text without tags, scripts and comments."""
    if "<" in markup:
        for pattern in _NO_TEXT:
            markup = re.sub(pattern, " ", markup)
    return bool(markup.strip())


def _clean(texts: pl.Series, length: int) -> pl.Series:
    texts = texts.cast(pl.String).fill_null("")
    texts = texts.map_elements(html.unescape, pl.String)
    for pattern in _NO_TEXT:
        texts = texts.str.replace_all(pattern, " ")
    texts = texts.str.replace_all(r"\s+", " ").str.strip_chars()
    if not length:
        return texts
    cut = texts.str.head(length)
    whole_words = cut.str.replace(r"\s+\S*$", "")
    is_cut = (texts.str.len_chars() > length) & (texts.str.slice(length, 1) != " ")
    return pl.select(pl.when(is_cut).then(whole_words).otherwise(cut)).to_series()
