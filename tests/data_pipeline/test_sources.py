"""Raw layouts, and what is said when they are broken."""

import os

import ml_collections
import pytest

from configs import csv, ml1m, ml100k
from data_pipeline.sources import SOURCES, base
from tests.raw_data import write_csv
from tssr_jax.errors import UserError


def read(config):
    source = SOURCES[config.data.source]
    return source.read(source.locate(config.data), config.data)


def test_movielens_100k_as_grouplens_publishes_it(tmp_path):
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n186\t302\t1\t891717742\n")
    genres = ["0"] * 19
    genres[3], genres[4], genres[5] = "1", "1", "1"
    line = "|".join(["242", "Misérables, Les (1995)", "01-Jan-1995", "", "http://x", *genres])
    (tmp_path / "u.item").write_bytes((line + "\n").encode("latin-1"))
    config = ml100k.get_config()
    config.data.raw_dir = str(tmp_path)
    raw = read(config)
    assert raw.interactions.rows() == [("196", "242", 881250949), ("186", "302", 891717742)]
    title = "Misérables, Les (1995)"
    assert raw.items.rows() == [("242", title, f"{title}. Animation, Children's, Comedy")]


def test_movielens_1m_as_grouplens_publishes_it(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n2::661::3::978302109\n")
    movies = "1193::Star Wars: Episode IV (1977)::Action|Sci-Fi\n661::Café au Lait (1993)::Comedy\n"
    (tmp_path / "movies.dat").write_bytes(movies.encode("latin-1"))
    config = ml1m.get_config()
    config.data.raw_dir = str(tmp_path)
    raw = read(config)
    assert raw.interactions.rows() == [("1", "1193", 978300760), ("2", "661", 978302109)]
    assert raw.items["text"].to_list() == [
        "Star Wars: Episode IV (1977). Action, Sci-Fi",
        "Café au Lait (1993). Comedy",
    ]


def test_movielens_names_the_malformed_line(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n2::661::3::soon\n")
    (tmp_path / "movies.dat").write_text("1193::A (1977)::Action\n661:B (1993):Comedy\n")
    config = ml1m.get_config()
    config.data.raw_dir = str(tmp_path)
    with pytest.raises(UserError, match=r"ratings.dat, line 2: .*'soon'"):
        read(config)
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n")
    with pytest.raises(UserError, match=r"movies.dat, line 2: '661:B"):
        read(config)


def test_movielens_folder_without_the_files_lists_what_it_holds(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    config = ml100k.get_config()
    config.data.raw_dir = str(tmp_path)
    with pytest.raises(UserError, match=r"no u.data and no u.item \(it holds: readme.txt\)"):
        read(config)


@pytest.fixture(name="folder")
def fixture_folder(tmp_path):
    return write_csv(tmp_path)


def read_csv(folder, **data):
    config = csv.get_config(str(folder))
    config.data.update(data)
    return read(config)


def test_csv(folder):
    (folder / "interactions.csv").write_text("user,item,timestamp\nu1,i1,12\n u2 ,i2,13.9\n")
    (folder / "items.csv").write_text('item,title\ni1,"Cars &amp; boats, blue"\ni2,\n')
    raw = read_csv(folder)
    assert raw.interactions.rows() == [("u1", "i1", 12), ("u2", "i2", 13)]
    assert raw.items.rows() == [("i1", "Cars & boats, blue", "Cars & boats, blue"), ("i2", "", "")]


def test_csv_text_is_joined_from_the_columns_that_are_filled(folder):
    (folder / "items.csv").write_text("item,title,brand,kind\na,Car,Acme,toy\nb,Boat,,toy\n")
    raw = read_csv(folder, text_columns=("title", "brand", "kind"))
    assert raw.items["text"].to_list() == ["Car. Acme. toy", "Boat. toy"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2024-01-31", 1706659200),
        ("2024-01-31 00:00:01", 1706659201),
        ("2024-01-31T00:00:02", 1706659202),
        ("1706659203", 1706659203),
    ],
)
def test_csv_timestamps(folder, text, seconds):
    (folder / "interactions.csv").write_text(f"user,item,timestamp\nu,i,{text}\n")
    assert read_csv(folder).interactions["timestamp"].to_list() == [seconds]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("interactions.csv", "", r"interactions.csv is empty"),
        ("interactions.csv", "user,item,timestamp\n", "has a header but no rows"),
        (
            "interactions.csv",
            "uid,item,timestamp\na,b,1\n",
            r"no column 'user'; its header line names 'uid', 'item', 'timestamp'.*user_column",
        ),
        (
            "interactions.csv",
            "user,item,timestamp\na,b,1\na,b,yesterday\n",
            r"line 3: column 'timestamp' holds 'yesterday'",
        ),
        ("interactions.csv", "user,item,timestamp\na,b,nan\n", r"line 2: .*'nan'"),
        ("interactions.csv", "user,item,timestamp\na,b,1e300\n", r"line 2: .*'1e300'"),
        ("interactions.csv", "user,item,timestamp\na,b,\n", r"line 2: .*'timestamp'"),
        ("interactions.csv", "user,item,timestamp\na,,1\n", r"line 2: column 'item' is empty"),
        ("interactions.csv", "user,item,timestamp\na,b,1\nc,d,1,9\n", "not a readable table"),
        ("items.csv", "", r"items.csv is empty"),
        ("items.csv", "item,name\na,b\n", r"no column 'title'.*text_columns"),
        (
            "items.csv",
            "item,title\na,Car\nb,Boat\na,Plane\n",
            r"'a' is described differently in lines 2 and 4 \('Car' and 'Plane'\)",
        ),
    ],
)
def test_csv_errors_say_what_where_and_what_to_do(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_csv(folder)


def test_csv_repeated_item_rows_are_counted(folder):
    (folder / "items.csv").write_text("item,title\na,Car\na,Car\n")
    raw = read_csv(folder)
    assert raw.items.height == 1 and raw.counts == {"repeated_item_rows": 1}


def test_csv_needs_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"configs/csv.py:FOLDER"):
        read_csv("")
    with pytest.raises(UserError, match="there is no folder"):
        read_csv(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no interactions.csv and no items.csv"):
        read_csv(tmp_path)


def test_files_of_a_bucket_are_copied_once_and_again_when_they_change(tmp_path, monkeypatch):
    """A folder stands for the bucket."""
    as_epath, bucket = base.epath.Path, tmp_path / "bucket"
    bucket.mkdir()
    (bucket / "items.csv").write_text("old")
    monkeypatch.setattr(
        base.epath, "Path", lambda path: as_epath(str(path).replace("gs://b", str(bucket)))
    )
    data = ml_collections.ConfigDict({"raw_dir": "gs://b", "cache_dir": str(tmp_path / "cache")})
    (copy,) = base.require_files(data, ["items.csv"], "Source 'csv'")
    assert copy.read_text() == "old" and copy.is_relative_to(tmp_path / "cache")
    copy.write_text("was not copied again")
    os.utime(copy, ((bucket / "items.csv").stat().st_mtime,) * 2)
    (bucket / "items.csv").write_text("something else")
    (copy,) = base.require_files(data, ["items.csv"], "Source 'csv'")
    assert copy.read_text() == "something else"
    inode = copy.stat().st_ino
    (copy,) = base.require_files(data, ["items.csv"], "Source 'csv'")
    assert copy.stat().st_ino == inode
    with pytest.raises(UserError, match=r"has no users.csv \(it holds: items.csv\)"):
        base.require_files(data, ["users.csv"], "Source 'csv'")
