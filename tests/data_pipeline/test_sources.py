"""Raw layouts, and what is said when they are broken."""

import gzip
import os
from collections import Counter

import ml_collections
import polars as pl
import pytest

from configs import amazon, csv, hm
from data_pipeline.sources import SOURCES, base
from data_pipeline.texts import describe
from tests.raw_layouts import LAYOUTS, NUM_ITEMS, walk, write_layout
from tssr_jax.errors import UserError


class Raw:
    """Everything that a source gives."""

    def __init__(self, config):
        self.counts = Counter()
        source, data = SOURCES[config.data.source], config.data
        files = source.locate(data)
        self.interactions = pl.concat(source.interactions(files, data, self.counts))
        wanted = self.interactions["item"].unique()
        self.items = source.items(files, data, wanted, self.counts)
        fields = data.text_fields or [n for n in self.items.columns if n not in ("item", "image")]
        self.described = describe(self.items, fields, data.text_field_length)

    def row(self, item):
        (row,) = self.described.filter(pl.col("item") == item).rows(named=True)
        return row


USER = {"hm": "{:064x}", "yelp": "user {}", "yelp-old": "user {}", "mind": "U{}"}
ITEM = {"hm": "01087750{:02d}", "yelp": "b{}", "yelp-old": "b{}", "mind": "N{}"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_interactions_are_those_of_the_walk(tmp_path, name):
    raw = Raw(write_layout(name, tmp_path))
    amazon_like = name.startswith("amazon")
    user = USER.get(name, "U{}" if amazon_like else "{}")
    item = ITEM.get(name, "B{:03d}" if amazon_like else "{}")
    table = raw.interactions.unique() if name == "hm" else raw.interactions
    expected = {}
    for u, i, t in walk():
        expected.setdefault(user.format(u), []).append((t, item.format(i)))
    found = {}
    for u, i, t in table.sort("timestamp", maintain_order=True).rows():
        found.setdefault(u, []).append((t, i))
    assert found.keys() == expected.keys()
    for u, pairs in expected.items():
        assert [i for _, i in found[u]] == [i for _, i in pairs], u
        if name == "mind":
            continue
        times = [t - t % 86_400 if name in ("hm", "yelp-old") else t for t, _ in pairs]
        assert [t for t, _ in found[u]] == times
    assert set(raw.described["item"]) == {item.format(i) for i in range(NUM_ITEMS)}


HM_TEXT = "Strap top 7. Vest top. Black. Solid. Jersey Basic. Top with straps, number 7."


HM_TEXT = "Strap top 7. Vest top. Black. Solid. Jersey Basic. Top with straps, number 7."


@pytest.mark.parametrize(
    ("name", "item", "text"),
    [
        ("hm", "0108775007", HM_TEXT),
        ("yelp", "b7", "Café & Bar 7. Tea, Pubs. Phoenix"),
        ("yelp-old", "b7", "Café & Bar 7. Tea, Pubs. Phoenix"),
        ("yelp", "b0", "Café & Bar 0. Phoenix"),
        ("amazon-2014", "B007", "Kid's Toy 7. Acme. Toys & Games, Puzzles. It's fun"),
        ("amazon-2018", "B007", "Kid's Toy 7. Acme. Toys & Games, Puzzles. It's, fun"),
        ("amazon-2023", "B008", "Kid's Toy 8. Acme. Toys & Games, Puzzles. It's, fun"),
        ("amazon-2023", "B007", "Kid's Toy 7. Acme. Toys & Games. It's, fun"),
        ("mind", "N7", 'Headline "7. sports. golf. An abstract'),
        ("ml-100k", "7", "Café 7 (1995). Animation, Comedy"),
        ("ml-1m", "7", "Café 7 (1995). Action, Drama"),
        ("ml-10m", "7", "Café 7 (1995). Action, Drama"),
        ("ml-32m", "7", "Café 7 (1995), Le. Action, Drama"),
        ("parquet", "7", "Thing. Things"),
    ],
)  # fmt: skip
def test_texts(tmp_path, name, item, text):
    assert Raw(write_layout(name, tmp_path)).row(item)["text"] == text


def test_text_of_kid_s_toy_with_lost_tags_keeps_words_apart():
    items = pl.DataFrame({"item": ["a"], "title": ["One<br/>two  &lt;3 &amp;\nthree < four"]})
    assert describe(items, ["title"], 0)["text"].to_list() == ["One two <3 & three < four"]


def test_fields_are_cut_after_whole_words():
    items = pl.DataFrame(
        {"item": ["a", "b", "c"], "x": ["one two three", "one two", "onetwothree"]}
    )
    assert describe(items, ["x"], 7)["text"].to_list() == ["one two", "one two", "onetwot"]
    assert describe(items, ["x"], 9)["text"].to_list() == ["one two", "one two", "onetwothr"]


def test_unknown_fields_are_named_with_those_that_there_are():
    items = pl.DataFrame({"item": ["a"], "title": ["A"], "brand": ["B"], "image": ["i"]})
    for fields in (("title", "colour"), ()):
        with pytest.raises(UserError, match="has the fields title, brand"):
            describe(items, fields, 0)


@pytest.mark.parametrize(
    ("name", "item", "image"),
    [
        ("hm", "0108775003", "images/010/0108775003.jpg"),
        ("hm", "0108775019", ""),
        ("amazon-2014", "B007", "http://x/7.jpg"),
        ("amazon-2018", "B007", "http://x/7.jpg"),
        ("amazon-2018", "B008", "http://x/8.jpg"),
        ("amazon-2023", "B007", "http://x/7.jpg"),
        ("yelp", "b7", ""),
    ],
)
def test_images(tmp_path, name, item, image):
    assert Raw(write_layout(name, tmp_path)).row(item)["image"] == image


def test_amazon_counts_what_it_leaves_out(tmp_path):
    config = write_layout("amazon-2014", tmp_path)
    raw = Raw(config)
    assert raw.counts["item_rows_that_disagree"] == 1
    assert raw.counts["item_rows_of_other_items"] == 1
    config.data.repeated_items = "error"
    with pytest.raises(UserError, match=r"'B001' is described differently in lines 2 and 21"):
        Raw(config)


@pytest.mark.parametrize("edition", ["toys", "toys-2015", "-2014"])
def test_amazon_editions_that_do_not_exist(tmp_path, edition):
    config = amazon.get_config(edition)
    config.data.raw_dir = str(tmp_path)
    with pytest.raises(UserError, match="must be CATEGORY-YEAR with a year of 2014, 2018, 2023"):
        SOURCES["amazon"].locate(config.data)


def test_hm_with_an_index_column_and_ids_without_zeros(tmp_path):
    """What pandas makes of both files."""
    config = write_layout("hm", tmp_path)
    expected = Raw(config)
    for name in ("transactions_train.csv", "articles.csv"):
        lines = (tmp_path / name).read_text().replace(",01087750", ",1087750").splitlines()
        lines = [f"{i - 1 if i else ''},{line}" for i, line in enumerate(lines)]
        content = "\n".join(lines).replace(",01087750", ",1087750") + "\n"
        (tmp_path / name).write_text(content)
    raw = Raw(config)
    assert raw.interactions.equals(expected.interactions)
    assert raw.described.equals(expected.described)


def test_mind_puts_the_history_before_the_first_impression(tmp_path):
    raw = Raw(write_layout("mind", tmp_path))
    rows = raw.interactions.filter(pl.col("user") == "U1").sort("timestamp", maintain_order=True)
    steps = rows["timestamp"].diff().drop_nulls().to_list()
    assert steps[:3] == [1, 1, 1] and steps[3] == 12 * 3600
    assert raw.counts["impressions_read"] == 80


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_without_the_files_lists_what_it_holds_and_what_is_wanted(tmp_path, name):
    config = write_layout(name, tmp_path / "raw")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "readme.txt").write_text("x")
    config.data.raw_dir = str(empty)
    files = [p.name for p in (tmp_path / "raw").iterdir() if p.is_file()]
    with pytest.raises(UserError, match=r"\(it holds: readme.txt\)") as error:
        SOURCES[config.data.source].locate(config.data)
    assert all(file in str(error.value) for file in files)
    config.data.raw_dir = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="there is no folder"):
        SOURCES[config.data.source].locate(config.data)


def test_sources_that_are_not_downloaded_ask_for_a_folder():
    with pytest.raises(UserError, match=r"--config.data.raw_dir=FOLDER with transactions_train"):
        SOURCES["hm"].locate(hm.get_config().data)


def test_movielens_names_the_malformed_line(tmp_path):
    config = write_layout("ml-1m", tmp_path)
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n2::661::3::soon\n")
    with pytest.raises(UserError, match=r"ratings.dat, line 2: .*'soon'"):
        Raw(config)
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n")
    (tmp_path / "movies.dat").write_text("1193::A (1977)::Action\n661:B (1993):Comedy\n")
    with pytest.raises(UserError, match=r"movies.dat, line 2: '661:B"):
        Raw(config)


def edit(path, change):
    content = path.read_bytes()
    packed = content[:2] == b"\x1f\x8b"
    content = change(gzip.decompress(content) if packed else content)
    path.write_bytes(gzip.compress(content) if packed else content)


TABLES = {"hm": "transactions_train.csv", "mind": "behaviors.tsv", "ml-32m": "ratings.csv"}
JSON_FILES = {
    "yelp": "yelp_academic_dataset_review.json",
    "amazon-2014": "meta_Toys_and_Games.json.gz",
    "amazon-2018": "Toys_and_Games_5.json.gz",
    "amazon-2023": "meta_Toys_and_Games.jsonl.gz",
}
ALL_FILES = TABLES | JSON_FILES


@pytest.mark.parametrize("name", ALL_FILES)
def test_carriage_returns_and_a_byte_order_mark(tmp_path, name):
    config = write_layout(name, tmp_path)
    expected = Raw(config)

    def change(content):
        lines = content.split(b"\n")  # every second line ends with both
        return b"\xef\xbb\xbf" + b"\n".join(
            line + b"\r" if i % 2 and line else line for i, line in enumerate(lines)
        )

    edit(tmp_path / ALL_FILES[name], change)
    raw = Raw(config)
    assert raw.interactions.equals(expected.interactions)
    assert raw.described.equals(expected.described)


@pytest.mark.parametrize("name", ALL_FILES)
def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path, name):
    config = write_layout(name, tmp_path)
    file = ALL_FILES[name]

    def change(content):
        lines = content.split(b"\n")
        lines[4] = lines[4][:-4] + b"\xe9" + lines[4][-4:]
        return b"\n".join(lines)

    edit(tmp_path / file, change)
    with pytest.raises(UserError, match=rf"{file}.*line 5"):
        Raw(config)


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_cut_gz_file_is_named(tmp_path, name):
    config = write_layout(name, tmp_path)
    path = tmp_path / ALL_FILES[name]
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        content = gzip.compress(content)
        path.unlink()
        path = path.with_name(path.name + ".gz")
    if name == "ml-32m":
        return  # GroupLens does not compress single files
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"{path.name}.* is cut or damaged after line \d+"):
        Raw(config)


@pytest.mark.parametrize("name", JSON_FILES)
def test_bad_lines_of_json_are_named_or_skipped_and_counted(tmp_path, name):
    config = write_layout(name, tmp_path)
    expected = Raw(config)
    file = JSON_FILES[name]

    def change(content):
        lines = content.split(b"\n")
        return b"\n".join([*lines[:2], b'{"asin": "B001", "cut', b"", *lines[2:]])

    edit(tmp_path / file, change)
    with pytest.raises(UserError, match=rf"{file}, line 3: .*--config.data.max_bad_lines=1"):
        Raw(config)
    config.data.max_bad_lines = 1
    raw = Raw(config)
    assert raw.counts["lines_skipped_as_malformed"] == 1
    assert raw.interactions.equals(expected.interactions)
    assert raw.described.equals(expected.described)


@pytest.mark.parametrize("value", ["", "NaN", "null"])
def test_ids_that_are_none(tmp_path, value):
    config = write_layout("ml-32m", tmp_path)
    edit(tmp_path / "ratings.csv", lambda c: c.replace(b"\n2,", f"\n{value},".encode()))
    with pytest.raises(UserError, match=r"ratings.csv, line 15: column 'userId' (is empty|holds)"):
        Raw(config)


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
    assert raw.interactions.rows() == [("u1", "i1", 12), ("u2", "i2", 13)]
    assert raw.described.rows() == [
        ("i1", "Cars & boats, blue", "Cars & boats, blue", ""),
        ("i2", "", "", ""),
    ]


def test_csv_text_is_joined_from_the_columns_that_are_filled(folder):
    (folder / "items.csv").write_text("item,title,brand,category\na,Car,Acme,toy\nb,Boat,,toy\n")
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
        ("31.01.2024", "%d.%m.%Y", 1706659200),
        ("01/31/2024 12:00 AM", "%m/%d/%Y %I:%M %p", 1706659200),
    ],
)
def test_csv_timestamps(folder, text, form, seconds):
    (folder / "interactions.csv").write_text(f"user,item,timestamp\nu,i1,{text}\n")
    raw = read_csv(folder, timestamp_format=form)
    assert raw.interactions["timestamp"].to_list() == [seconds]


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


def test_csv_repeated_item_rows_are_counted(folder):
    (folder / "items.csv").write_text("item,title\na,Car\na,Car\na,Bus\n")
    raw = read_csv(folder, repeated_items="first")
    assert raw.described["title"].to_list() == ["Car"]
    assert raw.counts["item_rows_repeated"] == 1 and raw.counts["item_rows_that_disagree"] == 1


def test_csv_ids_that_lost_their_zeros_in_one_file(folder):
    write_own(
        folder,
        "user,item,timestamp\nu,12,1\nu,13,2\nu,014,2\n",
        "item,title\n012,A\n013,B\n014,C\n",
    )
    with pytest.raises(UserError, match=r"'12' there, '012' here, and so for 2 of 3 items"):
        read_csv(folder)


def test_csv_needs_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"configs/csv.py:FOLDER"):
        read_csv("")
    with pytest.raises(UserError, match="there is no folder"):
        read_csv(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no interactions.csv, .* and no items.csv"):
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
