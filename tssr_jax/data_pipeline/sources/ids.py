"""How ids of one item may be written: what is taken as one, and what is told."""

import re
import unicodedata

import polars as pl

# What Python's `str.strip` removes; polars' `strip_chars` leaves some of it.
WHITE_SPACE = "".join(c for c in map(chr, range(0x3001)) if c.isspace())
ID = pl.col("item")
# Whole numbers, maybe with zeros in front or as floats: programs that take ids for numbers change
# them so. The number itself is what counts.
_WHOLE = r"^0*([0-9]+)(?:\.0+)?$"
NUMBER = ID.str.extract(_WHOLE)
_WHOLE_NUMBER = re.compile(_WHOLE, re.ASCII)
_INVISIBLE = ("Cf", "Cc")
_VISIBLE = (
    ID.str.replace_all("\u00a0", " ")
    .str.replace_all(r"[\p{Cf}\p{Cc}]", "")
    .str.strip_chars(WHITE_SPACE)
)
# Ways in which ids may differ that are told, but not mended.
DIFFERENCES = {
    "in letter case": ID.str.to_lowercase(),
    "in their Unicode form (NFC and NFD)": ID.str.normalize("NFC"),
    "in invisible characters": _VISIBLE,
    "in letter case, Unicode form or invisible characters": _VISIBLE.str.normalize(
        "NFKC"
    ).str.to_lowercase(),
}


def as_number(item: str) -> str | None:
    """The whole number that an id is, without leading zeros and ".0"; None if it is none."""
    number = _WHOLE_NUMBER.match(item.strip())
    return number[1] if number else None


def loose(item: str) -> str:
    """A form that ids have in common if they are one number, or differ in `DIFFERENCES` only."""
    if not (item.isascii() and item.isprintable()):
        item = "".join(
            " " if c == "\u00a0" else c for c in item if unicodedata.category(c) not in _INVISIBLE
        )
        item = unicodedata.normalize("NFKC", item)
    item = item.strip().lower()
    return as_number(item) or item
