"""Small dumps in every owner's layout: 40 users walk along 20 items, the contents are made up.

Each function writes a folder and returns the configuration that reads it.
"""

import gzip
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from configs import amazon, csv, hm, mind, ml1m, ml10m, ml20m, ml25m, ml32m, ml100k, yelp
from tests.support.raw_data import write_images
from tssr_jax.data_pipeline.sources import SOURCES, Dump
from tssr_jax.data_pipeline.sources.descriptions import with_ids_of_interactions
from tssr_jax.data_pipeline.texts import describe

NUM_USERS, NUM_ITEMS = 40, 20
START = 1_700_000_000
DAY = 86_400


def walk():
    """(user, item, seconds): user u goes on from item u, one item a day, 6 to 12 of them."""
    for user in range(NUM_USERS):
        for step in range(6 + user % 7):
            yield user, (user + step) % NUM_ITEMS, START + step * DAY


def write(path: Path, lines, packed=False) -> None:
    content = "".join(f"{line}\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if packed else content)


def day(seconds, form="%Y-%m-%d"):
    return datetime.fromtimestamp(seconds, UTC).strftime(form)


def with_folder(config, folder):
    config.data.raw_dir = str(folder)
    return config


def write_hm(folder):
    """One article has lost the zero in front of its id, one user buys everything twice."""
    rows = [
        f"{day(t)},{u:064x},{'' if i == 3 else '0'}1087750{i:02d},0.05,{1 + i % 2}"
        for u, i, t in walk()
        for _ in range(1 + (u == 0))
    ]
    write(
        folder / "transactions_train.csv",
        ["t_dat,customer_id,article_id,price,sales_channel_id", *rows],
    )
    columns = (
        "article_id,product_code,prod_name,product_type_no,product_type_name,product_group_name,"
        "graphical_appearance_no,graphical_appearance_name,colour_group_code,colour_group_name,"
        "perceived_colour_value_id,perceived_colour_value_name,perceived_colour_master_id,"
        "perceived_colour_master_name,department_no,department_name,index_code,index_name,"
        "index_group_no,index_group_name,section_no,section_name,garment_group_no,"
        "garment_group_name,detail_desc"
    )
    articles = [
        f"01087750{i:02d},0108775,Strap top {i},253,Vest top,Garment Upper body,1010016,Solid,9,"
        "Black,4,Dark,5,Black,1676,Jersey Basic,A,Ladieswear,1,Ladieswear,16,Basics,1002,"
        f'Jersey Basic,"Top with straps, number {i}."'
        for i in range(NUM_ITEMS)
    ]
    write(folder / "articles.csv", [columns, *articles])
    names = [f"images/010/01087750{i:02d}.jpg" for i in range(NUM_ITEMS - 2)]
    write_images(folder, names)
    (folder / names[0]).write_bytes(b"not a picture")
    return with_folder(hm.get_config(), folder)


def write_yelp(folder, old=False):
    """The new layout, or that of the first editions."""
    write(
        folder / "yelp_academic_dataset_review.json",
        (
            json.dumps(
                {
                    "user_id": f"user {u}",
                    "business_id": f"b{i}",
                    "stars": 4,
                    "date": day(t) if old else day(t, "%Y-%m-%d %H:%M:%S"),
                    "text": 'Nice, "really".\nCafé!',
                    **({"votes": {"funny": 0}, "type": "review"} if old else {"useful": 0}),
                }
            )
            for u, i, t in walk()
        ),
    )
    categories = {True: ["Tea", "Pubs"], False: "Tea, Pubs"}[old]
    write(
        folder / "yelp_academic_dataset_business.json",
        (
            json.dumps(
                {
                    "business_id": f"b{i}",
                    "name": f"Café &amp; Bar {i}",
                    "city": "Phoenix",
                    "state": "AZ",
                    "categories": categories if i else None,
                }
            )
            for i in range(NUM_ITEMS)
        ),
    )
    return with_folder(yelp.get_config(), folder)


def write_amazon(folder, year):
    """Toys of one year; item 1 has two lines that disagree, and one line is of an unknown item."""
    reviews, meta = {
        "2014": ("reviews_Toys_and_Games_5.json.gz", "meta_Toys_and_Games.json.gz"),
        "2018": ("Toys_and_Games_5.json.gz", "meta_Toys_and_Games.json.gz"),
        "2023": ("Toys_and_Games.jsonl.gz", "meta_Toys_and_Games.jsonl.gz"),
    }[year]
    if year == "2023":
        lines = (
            json.dumps(
                {
                    "rating": 5.0,
                    "user_id": f"U{u}",
                    "asin": f"X{i}",
                    "parent_asin": f"B{i:03d}",
                    "timestamp": 1000 * t + 7,
                }
            )
            for u, i, t in walk()
        )
    else:
        lines = (
            json.dumps(
                {
                    "reviewerID": f"U{u}",
                    "asin": f"B{i:03d}",
                    "overall": 5.0,
                    "unixReviewTime": t,
                    "reviewTime": "07 15, 2013",
                }
            )
            for u, i, t in walk()
        )
    write(folder / reviews, lines, packed=True)
    items = [_amazon_item(year, i) for i in (*range(NUM_ITEMS), 1, 99)]
    items[NUM_ITEMS]["title"] = "Something else"
    spell = repr if year == "2014" else json.dumps
    write(folder / meta, map(spell, items), packed=True)
    return with_folder(amazon.get_config(f"toys-{year}"), folder)


def _amazon_item(year, i):
    title = f"Kid&#39;s <b>Toy</b> {i}"
    return {
        "2014": {
            "asin": f"B{i:03d}",
            "title": title,
            "imUrl": f"http://x/{i}.jpg",
            "brand": "Acme",
            "categories": [["Toys & Games", "Puzzles"]],
            "description": "It's fun",
            "related": {"also_bought": ["B001"]},
        },
        "2018": {
            "asin": f"B{i:03d}",
            "title": title,
            "imageURL" if i % 2 else "image": [f"http://x/{i}.jpg"],
            "brand": "Acme",
            "category": ["Toys & Games", "Puzzles"],
            "description": ["It's", "fun"],
        },
        "2023": {
            "parent_asin": f"B{i:03d}",
            "title": title,
            "images": [{"thumb": "t", "large": f"http://x/{i}.jpg", "hi_res": None}],
            "store": "Acme",
            "main_category": "Toys & Games",
            "categories": [] if i % 2 else ["Toys & Games", "Puzzles"],
            "description": ["It's", "fun"],
        },
    }[year]


def write_mind(folder):
    """The first half of a user's walk is history, the second is clicked in two impressions."""
    sequences = {}
    for u, i, _ in walk():
        sequences.setdefault(u, []).append(f"N{i}")
    rows = []
    for u, items in sequences.items():
        history = " ".join(items[:3])
        for hour, clicked in ((9, items[3:4]), (21, items[4:])):
            shown = " ".join([f"{i}-1" for i in clicked] + ["N0-0"])
            time = f"11/{11 + u % 3}/2019 {(hour - 1) % 12 + 1}:05:58 {'PM' if hour > 12 else 'AM'}"
            rows.append(f"{len(rows)}\tU{u}\t{time}\t{history}\t{shown}")
    write(folder / "behaviors.tsv", rows[::-1])
    write(
        folder / "news.tsv",
        (
            f'N{i}\tsports\tgolf\tHeadline "{i}\tAn abstract\thttps://x\t[]\t[]'
            for i in range(NUM_ITEMS)
        ),
    )
    return with_folder(mind.get_config(), folder)


def write_movielens(folder, size):
    title = "Café {} (1995)"
    if size == "100k":
        write(folder / "u.data", (f"{u}\t{i}\t3\t{t}" for u, i, t in walk()))
        flags = "|".join("1" if g in (3, 5) else "0" for g in range(19))
        lines = (f"{i}|{title.format(i)}|01-Jan-1995||http://x|{flags}" for i in range(NUM_ITEMS))
        (folder / "u.item").write_bytes("".join(f"{x}\n" for x in lines).encode("latin-1"))
    elif size in ("1m", "10m"):
        write(folder / "ratings.dat", (f"{u}::{i}::3::{t}" for u, i, t in walk()))
        lines = (f"{i}::{title.format(i)}::Action|Drama" for i in range(NUM_ITEMS))
        content = "".join(f"{x}\n" for x in lines)
        encoding = "latin-1" if size == "1m" else "utf8"
        (folder / "movies.dat").write_bytes(content.encode(encoding))
    else:
        rows = (f"{u},{i},3.5,{t}" for u, i, t in walk())
        write(folder / "ratings.csv", ["userId,movieId,rating,timestamp", *rows])
        rows = (f'{i},"{title.format(i)}, Le",Action|Drama' for i in range(NUM_ITEMS))
        write(folder / "movies.csv", ["movieId,title,genres", *rows])
    configs = {"100k": ml100k, "1m": ml1m, "10m": ml10m, "20m": ml20m, "25m": ml25m, "32m": ml32m}
    return with_folder(configs[size].get_config(), folder)


def write_parquet(folder):
    users, items, times = zip(*walk(), strict=True)
    folder.mkdir(parents=True, exist_ok=True)
    table = pl.DataFrame({"user": users, "item": items, "timestamp": times})
    table.write_parquet(folder / "interactions.parquet")
    table = pl.DataFrame({"item": range(NUM_ITEMS), "title": "Thing", "category": "Things"})
    table.write_parquet(folder / "items.parquet")
    return csv.get_config(str(folder))


LAYOUTS = {
    "hm": write_hm,
    "yelp": write_yelp,
    "yelp-old": lambda folder: write_yelp(folder, old=True),
    "amazon-2014": lambda folder: write_amazon(folder, "2014"),
    "amazon-2018": lambda folder: write_amazon(folder, "2018"),
    "amazon-2023": lambda folder: write_amazon(folder, "2023"),
    "mind": write_mind,
    "parquet": write_parquet,
    **{
        f"ml-{size}": lambda folder, size=size: write_movielens(folder, size)
        for size in ("100k", "1m", "10m", "20m", "25m", "32m")
    },
}


def write_layout(name, folder):
    folder.mkdir(parents=True, exist_ok=True)
    return LAYOUTS[name](folder)


class Raw:
    """Everything that a source gives, in memory."""

    def __init__(self, config):
        source, data = SOURCES[config.data.source], config.data
        dump = Dump(source.locate(data), data, Counter())
        self.counts = dump.counts
        self.interactions = pl.concat(source.interactions(dump))
        wanted = self.interactions["item"].unique()
        self.items = with_ids_of_interactions(source.items(dump, wanted), wanted, dump)
        fields = data.text_fields or [n for n in self.items.columns if n not in ("item", "image")]
        self.described = describe(self.items, fields, data.text_field_length)

    def row(self, item):
        (row,) = self.described.filter(pl.col("item") == item).rows(named=True)
        return row
