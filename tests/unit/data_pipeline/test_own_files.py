"""One's own CSV and Parquet files, and what is said when they are broken."""

import gzip
import os
import shutil
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import ml_collections
import polars as pl
import pytest

from configs import csv
from tests.support import buckets
from tests.support.raw_layouts import Raw
from tssr_jax.data_pipeline.prepare import prepare
from tssr_jax.data_pipeline.sources import base
from tssr_jax.data_pipeline.store import open_store
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.errors import UserError


@pytest.fixture(name="folder")
def fixture_folder(tmp_path):
    write_own(
        tmp_path, "user,item,timestamp\nu1,i1,12\n u2 ,i2,13.9\n", "item,title\ni1,Car\ni2,\n"
    )
    return tmp_path


def write_own(folder, interactions, items):
    (folder / "interactions.csv").write_text(interactions)
    (folder / "items.csv").write_text(items)


def read_csv(folder, **data):
    config = csv.get_config(str(folder))
    config.data.update(data)
    return Raw(config)


def test_csv(folder):
    (folder / "items.csv").write_text('item,title\ni1,"Cars &amp; boats, blue"\ni2,\n')
    raw = read_csv(folder)
    assert raw.interactions.rows() == [("u1", "i1", 12_000), ("u2", "i2", 13_900)]
    assert raw.described.rows() == [
        ("i1", "Cars & boats, blue", "Cars & boats, blue", ""),
        ("i2", "", "", ""),
    ]


def test_csv_text_is_joined_from_the_columns_that_are_filled(folder):
    (folder / "items.csv").write_text("item,title,brand,category\ni1,Car,Acme,toy\ni2,Boat,,toy\n")
    raw = read_csv(folder, text_fields=("title", "brand", "category"))
    assert raw.described["text"].to_list() == ["Car. Acme. toy", "Boat. toy"]
    # Without a choice: title and categories.
    assert read_csv(folder).described["text"].to_list() == ["Car. toy", "Boat. toy"]


def test_csv_compressed(folder):
    for name in ("interactions.csv", "items.csv"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    assert read_csv(folder).interactions.height == 2


@pytest.mark.parametrize(
    ("text", "form", "seconds"),
    [
        ("2024-01-31", "", 1706659200),
        ("2024-01-31 00:00:01", "", 1706659201),
        ("2024-01-31T00:00:02", "", 1706659202),
        ("1706659203", "", 1706659203),
        ("2024-01-31T00:00:04Z", "", 1706659204),
        ("2024-01-31T02:00:05.75+02:00", "", 1706659205.75),
        ("2024-01-31 00:00:06+00:00", "", 1706659206),
        ("2024-01-31 00:00:07.123456", "", 1706659207.123),
        ("1706659207.123", "", 1706659207.123),
        ("1706659207.1239", "", 1706659207.123),
        ("2024-01-31 00:00:07.1239", "", 1706659207.123),
        ("1.706659207e9", "", 1706659207),
        ("-1.5", "", -1.5),
        ("128849018880", "", 128849018880),  # the largest, exactly
        ("2024-01-30T19:00:07-05", "", 1706659207),
        ("2024-01-31 00:01", "", 1706659260),
        ("2024-01-31T00:01", "", 1706659260),
        ("2024-01-31 00:00:08", "%Y-%m-%d %X", 1706659208),
        ("2024-01-31 12:00:09 AM", "%Y-%m-%d %I:%M:%S %p", 1706659209),
        ("31.01.2024", "%d.%m.%Y", 1706659200),
        ("01/31/2024 12:00 AM", "%m/%d/%Y %I:%M %p", 1706659200),
    ],
)
def test_csv_timestamps(folder, text, form, seconds):
    (folder / "interactions.csv").write_text(f"user,item,timestamp\nu,i1,{text}\n")
    raw = read_csv(folder, timestamp_format=form)
    assert raw.interactions["timestamp"].to_list() == [round(1000 * seconds)]


@pytest.mark.parametrize("form", ["2024-01-31 00:00:00.{:03d}", "1706659200.{:03d}"])
def test_what_follows_within_a_second_is_in_order(tmp_path, form):
    (tmp_path / "raw").mkdir()
    rows = [f"u,i{i},{form.format(i)}\n" for i in reversed(range(100, 140))]
    (tmp_path / "raw" / "interactions.csv").write_text("user,item,timestamp\n" + "".join(rows))
    items = "".join(f"i{i},Thing {i}\n" for i in range(100, 140))
    (tmp_path / "raw" / "items.csv").write_text("item,title\n" + items)
    config = csv.get_config(str(tmp_path / "raw"))
    config.data.update(cache_dir=str(tmp_path / "cache"), min_item_interactions=1)
    prepared = prepare(config.data)
    ends = tf.constant([40], tf.int64)
    (sequence,) = open_store(prepared, config).rows([0]).windows(ends, 40).numpy()
    ordered = [prepared.item_ids[place - 1] for place in sequence]
    assert ordered == [f"i{i}" for i in range(100, 140)]


def test_csv_timestamps_of_another_format(folder):
    (folder / "interactions.csv").write_text("user,item,timestamp\nu,i1,2024-01-31\n")
    with pytest.raises(UserError, match=r"'2024-01-31', which is not of the format '%d.%m.%Y'"):
        read_csv(folder, timestamp_format="%d.%m.%Y")


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
            r"line 3: column 'timestamp' holds 'yesterday'.*timestamp_format",
        ),
        ("interactions.csv", "user,item,timestamp\na,b,nan\n", r"line 2: .*'nan'"),
        ("interactions.csv", "user,item,timestamp\na,b,1e300\n", r"line 2: .*'1e300'"),
        ("interactions.csv", "user,item,timestamp\na,b,\n", r"line 2: .*'timestamp'"),
        ("interactions.csv", "user,item,timestamp\na,,1\n", r"line 2: column 'item' is empty"),
        (
            "interactions.csv",
            "user,item,timestamp\na,b,1\nc,d,1,9\n",
            r"not a readable table: line 3 has 4 fields, line 1 has 3",
        ),
        ("items.csv", "", r"items.csv is empty"),
        ("items.csv", "item,name\na,b\n", r"no column 'title'.*text_fields"),
        (
            "items.csv",
            "item,title\na,Car\nb,Boat\na,Plane\n",
            r"'a' is described differently in lines 2 and 4 \(title: 'Car' and 'Plane'\)",
        ),
    ],
)
def test_csv_errors_say_what_where_and_what_to_do(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_csv(folder)


def test_a_format_that_cannot_be_read_by_is_told(folder):
    with pytest.raises(UserError, match=r"timestamp_format is '%Q', which strptime can't read"):
        read_csv(folder, timestamp_format="%Q")


def test_columns_that_are_called_like_ours(folder):
    write_own(
        folder,
        "user,sku,timestamp\nu,a,1\nu,b,2\n",
        "item,sku,row,title\n7,a,1,Car\n8,b,2,Boat\n",
    )
    raw = read_csv(folder, item_column="sku")
    assert raw.described.select("item", "title").rows() == [("a", "Car"), ("b", "Boat")]
    with pytest.raises(UserError, match=r"items.csv: --config.data.text_fields can't have 'item'"):
        read_csv(folder, item_column="sku", text_fields=("title", "item"))


def test_parquet_with_the_types_that_libraries_write(tmp_path):
    time = datetime(2024, 1, 31, 1, 2, 3, 500_000, tzinfo=UTC)
    zoned = time.astimezone(ZoneInfo("Asia/Tokyo"))
    pl.DataFrame(
        {
            "user": ["u", "u"],
            "item": [b"7", b"8"],
            "timestamp": pl.Series([zoned, zoned], dtype=pl.Datetime("ns", "Asia/Tokyo")),
            "unread": [{"a": 1}, {"a": 2}],
        }
    ).write_parquet(tmp_path / "interactions.parquet")
    pl.DataFrame(
        {
            "item": [7, 8],
            "title": ["Car", "Boat"],
            "categories": [["toy", "red"], None],
            "numbers": [[1.5, 2.5], []],
            "vector": [b"\xff", b"\x00"],
            "vectors": [[b"\xff"], []],
            "age": [timedelta(days=1), None],
            "places": [{"x": 1}, {"x": 2}],
        }
    ).write_parquet(tmp_path / "items.parquet")
    raw = read_csv(tmp_path, text_fields=("title", "categories", "numbers"))
    ticks = 1000 * int(time.timestamp()) + 500
    assert raw.interactions.rows() == [("u", "7", ticks), ("u", "8", ticks)]
    assert raw.described["text"].to_list() == ["Car. toy, red. 1.5, 2.5", "Boat"]
    with pytest.raises(UserError, match=r"column 'places' is of type Struct.*, which has no text"):
        read_csv(tmp_path, text_fields=("places",))
    with pytest.raises(UserError, match=r"column 'unread' is of type Struct.*, which has no text"):
        read_csv(tmp_path, user_column="unread")


def test_csv_repeated_item_rows_are_counted(folder):
    (folder / "items.csv").write_text("item,title\ni1,Car\ni1,Car\ni1,Bus\n")
    raw = read_csv(folder, repeated_items="first")
    assert raw.described["title"].to_list() == ["Car"]
    assert raw.counts["item_rows_repeated"] == 1 and raw.counts["item_rows_that_disagree"] == 1


def test_csv_ids_that_lost_their_zeros_in_one_file(folder, capsys):
    write_own(
        folder,
        "user,item,timestamp\nu,12,1\nu,13,2\nu,014,2\n",
        "item,title\n012,A\n013,B\n014,C\n",
    )
    raw = read_csv(folder)
    assert raw.described.select("item", "title").rows() == [("12", "A"), ("13", "B"), ("014", "C")]
    assert raw.counts["items_whose_id_was_mended"] == 2
    assert "'12' there, '012' here. They are taken as one, for 2 items" in capsys.readouterr().out


def test_csv_needs_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"--config=csv:FOLDER"):
        read_csv("")
    with pytest.raises(UserError, match="there is no folder"):
        read_csv(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no interactions.csv, .* and no items.csv"):
        read_csv(tmp_path)


def test_files_of_a_bucket_are_copied_once_and_again_when_they_change(tmp_path, monkeypatch):
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    (bucket / "items.csv").write_text("old")
    buckets.stand_in(monkeypatch, bucket)
    data = ml_collections.ConfigDict({"raw_dir": "gs://b", "cache_dir": str(tmp_path / "cache")})

    def find(name="items.csv"):
        return base.find_files(data, [[name]], "Source 'csv'")[0]

    copy = find()
    assert copy.read_text() == "old" and copy.is_relative_to(tmp_path / "cache")
    copy.write_text("was not copied again")
    os.utime(copy, ((bucket / "items.csv").stat().st_mtime,) * 2)
    (bucket / "items.csv").write_text("something else")
    assert find().read_text() == "something else"
    inode = copy.stat().st_ino
    assert find().stat().st_ino == inode
    with pytest.raises(UserError, match=r"has no users.csv \(it holds: items.csv\)"):
        find("users.csv")


def test_a_folder_may_be_named_with_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert read_csv(f"~/{folder.name}").interactions.height == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (str.upper, "Ids differ in letter case: 'i1' there, 'I1' here"),
        ("\u200b{}".format, r"Ids differ in invisible characters: 'i1' there, '\\u200bi1' here"),
        ("x{}".format, "For example 'i1' has no row here, and 'xi1' has no interaction"),
    ],
)
def test_an_items_file_of_other_ids_is_refused(folder, change, message):
    rows = "".join(f"{change(f'i{i}')},Car\n" for i in range(1, 3))
    (folder / "items.csv").write_text("item,title\n" + rows)
    with pytest.raises(
        UserError, match=rf"describes 0 of 2 items of .*interactions.csv. {message}"
    ):
        read_csv(folder)


def test_single_ids_that_differ_are_named(folder, capsys):
    write_own(
        folder,
        "user,item,timestamp\nu,caf\u00e9,1\nu,b,2\nu,c,3\n",
        "item,title\ncafe\u0301,A\nb,B\nc,C\n",
    )
    assert read_csv(folder).described.height == 3
    told = capsys.readouterr().out
    assert r"Unicode form (NFC and NFD): 1 items have no description" in told
    assert r"('caf\xe9' and 'cafe\u0301')" in told


def test_ids_as_floats_are_mended(folder):
    write_own(
        folder,
        "user,item,timestamp\nu,1.0,1\nu,2.0,2\nu,3.5,3\n",
        "item,title\n1,A\n2,B\n3,C\n",
    )
    rows = read_csv(folder).described.select("item", "title").rows()
    assert rows == [("1.0", "A"), ("2.0", "B"), ("3", "C")]


def test_ids_that_interactions_write_in_two_ways_are_told(folder, capsys):
    write_own(
        folder,
        "user,item,timestamp\nu,3,1\nu,3.0,2\nu,4,3\n",
        "item,title\n3,A\n4,B\n",
    )
    read_csv(folder)
    told = capsys.readouterr().out
    assert "ids of items in two ways: '3' and '3.0' are two items, and 2 ids are like that" in told


def test_bytes_that_are_no_text_are_told(tmp_path, capsys):
    table = {"user": ["u", "u"], "item": [b"a", b"\xe9"], "timestamp": [1, 2]}
    pl.DataFrame(table).write_parquet(tmp_path / "interactions.parquet")
    items = {"item": ["a", "b"], "title": ["A", "B"], "category": [b"\xe9", b"toy"]}
    pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(UserError, match=r"column 'item' holds bytes .* \(b'.xe9'\)"):
        read_csv(tmp_path)
    pl.DataFrame(table | {"item": ["a", "b"]}).write_parquet(tmp_path / "interactions.parquet")
    assert read_csv(tmp_path, text_fields=("title",)).described["text"].to_list() == ["A", "B"]
    assert "column 'category' holds bytes" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"column 'category' holds bytes"):
        read_csv(tmp_path, text_fields=("title", "category"))


def test_whole_numbers_that_a_program_made_floats_are_whole_ids(tmp_path):
    table = {"user": [1.0, 2.0], "item": [3.0, 4.5], "timestamp": [1.7e9, 1.7e9 + 0.25]}
    pl.DataFrame(table).write_parquet(tmp_path / "interactions.parquet")
    items = {"item": [3.0, 4.5], "title": ["A", "B"]}
    pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    read = read_csv(tmp_path)
    assert read.described["item"].to_list() == ["3", "4.5"]
    assert read.interactions["user"].to_list() == ["1", "2"]
    assert read.interactions["timestamp"].to_list() == [1_700_000_000_000, 1_700_000_000_250]
    for values in ([2.0**53, 1.0], pl.Series([2.0**24, 1.0], dtype=pl.Float32)):
        pl.DataFrame(table | {"user": values}).write_parquet(tmp_path / "interactions.parquet")
        with pytest.raises(UserError, match=r"'user' holds .* as a float. .* Write ids as strings"):
            read_csv(tmp_path)
    missing = table | {"user": [1.0, float("nan")]}
    pl.DataFrame(missing).write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(UserError, match="line 2: column 'user' is empty"):
        read_csv(tmp_path)


def test_lists_are_no_ids(tmp_path):
    table = {"user": ["u", "u"], "item": [["a"], ["b"]], "timestamp": [1, 2]}
    pl.DataFrame(table).write_parquet(tmp_path / "interactions.parquet")
    pl.DataFrame({"item": ["a"], "title": ["A"]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(UserError, match=r"column 'item' is of type List.*, which has no text"):
        read_csv(tmp_path)


def test_a_second_file_of_interactions_is_told(folder, capsys):
    shutil.copy(folder / "interactions.csv", folder / "interactions.csv.gz")
    read_csv(folder)
    told = capsys.readouterr().out
    assert "interactions.csv and interactions.csv.gz: interactions.csv is read" in told


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_cut_character_of_utf16_is_told(folder, newline):
    text = (folder / "interactions.csv").read_text().replace("\n", newline)
    (folder / "interactions.csv").write_bytes(text.encode("utf-16") + b"x")
    with pytest.raises(UserError, match="begins as UTF-16 does, but is not"):
        read_csv(folder)
    (folder / "interactions.csv").write_bytes(text.encode("utf-32"))
    with pytest.raises(UserError, match="is UTF-32"):
        read_csv(folder)


def test_white_space_is_what_python_strips(folder):
    space = "".join(c for c in map(chr, range(0x3001)) if c.isspace() and c not in "\n\r")
    write_own(folder, f"user,item,timestamp\nu,i1{space},1\n", "item,title\ni1,A\n")
    assert read_csv(folder).interactions["item"].to_list() == ["i1"]
