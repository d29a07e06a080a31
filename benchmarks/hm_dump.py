"""Writes a dump like H&M's from Kaggle: the same files, columns and types, made-up contents.

    python -m benchmarks.hm_dump --folder=/tmp/hm

By default of H&M's size: 31.8 million transactions, sorted by day, of 1.37 million customers and
105,542 articles, whose activity and popularity are as uneven as there (log-normal and Zipf).
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from absl import app, flags
from rich.progress import track

_FOLDER = flags.DEFINE_string("folder", None, "Where to write.", required=True)
_TRANSACTIONS = flags.DEFINE_integer("transactions", 31_788_324, "Rows.", lower_bound=1)
_CUSTOMERS = flags.DEFINE_integer("customers", 1_371_980, "Customers.", lower_bound=1)
_ARTICLES = flags.DEFINE_integer("articles", 105_542, "Articles.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed.")
_DAYS = 734
_ROWS_PER_PART = 2_000_000
_KINDS = ("Vest top", "Bra", "Trousers", "Socks", "Dress", "Sweater", "T-shirt", "Hat", "Jacket")
_COLOURS = ("Black", "White", "Dark Blue", "Light Pink", "Green", "Red", "Beige", "Yellow")
_WORDS = ("soft", "cotton", "jersey", "narrow", "wide", "ribbed", "hem", "waist", "lined", "sleeve")


def write_transactions(path: Path, articles: np.ndarray, rng: np.random.Generator) -> None:
    """Rows t_dat,customer_id,article_id,price,sales_channel_id in the order of days."""
    customers = pl.Series(
        [hashlib.sha256(f"{i}".encode()).hexdigest() for i in range(_CUSTOMERS.value)]
    )
    activity = np.cumsum(rng.lognormal(0.0, 1.3, _CUSTOMERS.value))
    popularity = np.cumsum(1.0 / (np.arange(_ARTICLES.value) + 20.0) ** 0.8)
    numbers = pl.Series(articles)
    starts = range(0, _TRANSACTIONS.value, _ROWS_PER_PART)
    with path.open("wb") as file:
        for start in track(starts, "Writing transactions"):
            rows = min(_ROWS_PER_PART, _TRANSACTIONS.value - start)
            days = (start + np.arange(rows)) * _DAYS // _TRANSACTIONS.value
            pl.DataFrame(
                {
                    "t_dat": np.datetime64("2018-09-20") + days.astype("timedelta64[D]"),
                    "customer_id": customers.gather(_draw(rng, activity, rows)),
                    "article_id": numbers.gather(_draw(rng, popularity, rows)),
                    "price": rng.uniform(0.001, 0.1, rows),
                    "sales_channel_id": rng.integers(1, 3, rows),
                }
            ).write_csv(file, include_header=start == 0)


def write_articles(path: Path, articles: np.ndarray, rng: np.random.Generator) -> None:
    """The 25 columns of articles.csv."""

    def pick(words: Sequence[str]) -> list[str]:
        return np.array(words)[rng.integers(len(words), size=len(articles))].tolist()

    def code(name: str) -> dict[str, np.ndarray]:
        return {name: rng.integers(1, 99, len(articles))}

    kind, colour = pick(_KINDS), pick(_COLOURS)
    phrases = [" ".join(words) for words in rng.choice(_WORDS, (len(articles), 20))]
    columns: dict[str, object] = {"article_id": articles, "product_code": [a[:7] for a in articles]}
    columns["prod_name"] = [f"{k} {a[-4:]}" for k, a in zip(kind, articles, strict=True)]
    columns |= code("product_type_no") | {"product_type_name": kind}
    columns["product_group_name"] = pick(["Garment Upper body", "Underwear", "Shoes"])
    columns |= code("graphical_appearance_no")
    columns["graphical_appearance_name"] = pick(["Solid", "Stripe", "Melange"])
    columns |= code("colour_group_code") | {"colour_group_name": colour}
    columns |= code("perceived_colour_value_id") | {"perceived_colour_value_name": colour}
    columns |= code("perceived_colour_master_id") | {"perceived_colour_master_name": colour}
    columns |= code("department_no") | {"department_name": pick(["Jersey", "Clean Lingerie"])}
    columns |= code("index_code") | {"index_name": pick(["Ladieswear", "Menswear"])}
    columns |= code("index_group_no") | {"index_group_name": pick(["Ladieswear", "Menswear"])}
    columns |= code("section_no") | {"section_name": pick(["Womens Everyday Basics", "Kids"])}
    columns |= code("garment_group_no") | {"garment_group_name": pick(["Jersey Basic", "Knit"])}
    columns["detail_desc"] = phrases
    pl.DataFrame(columns).write_csv(path)


def _draw(rng: np.random.Generator, cumulated: np.ndarray, number: int) -> np.ndarray:
    return np.searchsorted(cumulated, rng.uniform(0.0, cumulated[-1], number), side="right")


def main(argv: Sequence[str]) -> None:
    """Writes transactions_train.csv and articles.csv."""
    del argv
    folder = Path(_FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(_SEED.value)
    numbers = 108_775_000 + np.sort(rng.choice(850_000_000, _ARTICLES.value, replace=False))
    articles = np.array([f"{n:010d}" for n in numbers])
    write_articles(folder / "articles.csv", articles, rng)
    write_transactions(folder / "transactions_train.csv", articles, rng)


if __name__ == "__main__":
    app.run(main)
