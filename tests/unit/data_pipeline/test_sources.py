"""Raw layouts, and what is said when they are broken."""

import ast
import gzip
import json
import re

import polars as pl
import pytest

from configs import amazon, hm
from tests.support.raw_data import write_images
from tests.support.raw_layouts import LAYOUTS, NUM_ITEMS, Raw, walk, write_layout
from tssr_jax.data_pipeline.prepare import prepare
from tssr_jax.data_pipeline.sources import SOURCES
from tssr_jax.data_pipeline.texts import describe
from tssr_jax.errors import UserError

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
        finer = 7 if name == "amazon-2023" else 0  # milliseconds
        assert [t for t, _ in found[u]] == [1000 * t + finer for t in times]
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


def test_scripts_and_comments_of_a_page_are_no_text():
    title = "<STYLE>a {color: red}</style >A<script src=x>if (a < b)\n c()</script> toy<!-- <b> -->"
    items = pl.DataFrame({"item": ["a"], "title": [title]})
    assert describe(items, ["title"], 0)["text"].to_list() == ["A toy"]


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
    assert steps[:3] == [1000, 1000, 1000] and steps[3] == 1000 * 12 * 3600
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


# GroupLens does not compress single files.
@pytest.mark.parametrize("name", [name for name in ALL_FILES if name != "ml-32m"])
def test_a_cut_gz_file_is_named(tmp_path, name):
    config = write_layout(name, tmp_path)
    path = tmp_path / ALL_FILES[name]
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        content = gzip.compress(content)
        path.unlink()
        path = path.with_name(path.name + ".gz")
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


def test_half_a_character_in_a_text_is_a_bad_line(tmp_path):
    config = write_layout("amazon-2018", tmp_path)
    file = tmp_path / "meta_Toys_and_Games.json.gz"
    line = json.dumps({"asin": "B001", "title": "half \ud83d"}).encode()
    edit(file, lambda content: b"\n".join([line, content]))
    with pytest.raises(UserError, match=rf"{file.name}, line 1: .*surrogates not allowed"):
        Raw(config)
    whole = json.dumps({"asin": "B001", "title": "whole \U0001f600"}).encode()
    edit(file, lambda content: content.replace(line, whole))
    config.data.repeated_items = "first"
    assert Raw(config).row("B001")["title"] == "whole \U0001f600"


def test_pictures_that_come_later_make_another_data_set(tmp_path):
    config = write_layout("hm", tmp_path / "raw")
    config.data.update(cache_dir=str(tmp_path / "cache"), text_fields=("prod_name",))
    before = prepare(config.data)
    missing = before.images.index("")
    item = before.item_ids[missing]
    write_images(tmp_path / "raw", [f"images/{item[:3]}/{item}.jpg"])
    after = prepare(config.data)
    assert after.key != before.key
    assert after.images[missing] == f"images/{item[:3]}/{item}.jpg"


@pytest.mark.parametrize("value", ["", "NaN", "null"])
def test_ids_that_are_none(tmp_path, value):
    config = write_layout("ml-32m", tmp_path)
    edit(tmp_path / "ratings.csv", lambda c: c.replace(b"\n2,", f"\n{value},".encode()))
    with pytest.raises(UserError, match=r"ratings.csv, line 15: column 'userId' (is empty|holds)"):
        Raw(config)


def test_mind_without_the_impressions_numbers(tmp_path):
    """Some copies have no first column."""
    config = write_layout("mind", tmp_path)
    expected = Raw(config)

    def change(content):
        return b"\n".join(line.partition(b"\t")[2] for line in content.split(b"\n"))

    edit(tmp_path / "behaviors.tsv", change)
    assert Raw(config).interactions.equals(expected.interactions)
    edit(tmp_path / "behaviors.tsv", lambda content: content.replace(b"\t", b";"))
    with pytest.raises(
        UserError, match=r"has 1 columns, .* must be impression, user, time, .*; or"
    ):
        Raw(config)


def test_mind_that_does_not_tell_clicks(tmp_path):
    config = write_layout("mind", tmp_path)
    edit(tmp_path / "behaviors.tsv", lambda c: c.replace(b"-1", b"").replace(b"-0", b""))
    with pytest.raises(UserError, match="These are probably the test behaviors"):
        Raw(config)


def test_mind_with_some_impressions_without_clicks(tmp_path):
    """Test behaviors among others, commas between items, a header line."""
    config = write_layout("mind", tmp_path)
    behaviors = tmp_path / "behaviors.tsv"
    content = behaviors.read_bytes()
    lines = content.splitlines(keepends=True)
    for old, new in ((b"-0", b""), (b" ", b",")):
        parts = lines[4].split(b"\t")
        parts[4] = parts[4].replace(old, new, 1)
        behaviors.write_bytes(b"".join([*lines[:4], b"\t".join(parts), *lines[5:]]))
        with pytest.raises(UserError, match=r"line 5: not every item of .*; 1 of 80"):
            Raw(config)
    behaviors.write_bytes(b"impression\tuser\ttime\thistory\timpressions\n" + content)
    with pytest.raises(UserError, match=r"begins with a header line, .*impression.*Remove it"):
        Raw(config)


@pytest.mark.parametrize("width", [6, 7])
def test_mind_news_without_the_last_columns(tmp_path, width):
    config = write_layout("mind", tmp_path)
    expected = Raw(config)
    news = tmp_path / "news.tsv"
    rows = [line.split("\t") for line in news.read_text().splitlines()]
    news.write_text("".join("\t".join([*row, "", "", ""][:width]) + "\n" for row in rows))
    assert Raw(config).described.equals(expected.described)


def test_hm_ids_that_are_floats_in_one_file(tmp_path):
    config = write_layout("hm", tmp_path)
    expected = Raw(config)
    number = re.compile(rb",0(1087750[0-9]+),")
    edit(tmp_path / "transactions_train.csv", lambda c: number.sub(rb",\1.0,", c))
    assert Raw(config).interactions.equals(expected.interactions)


def test_seconds_where_amazon_has_milliseconds(tmp_path):
    config = write_layout("amazon-2023", tmp_path)
    file = next(path for path in tmp_path.glob("*.jsonl*") if "meta" not in path.name)
    time = re.compile(rb'("timestamp": ?[0-9]{10})[0-9]{3}')
    edit(file, lambda c: time.sub(rb"\1", c, count=1))
    with pytest.raises(UserError, match=r"line 1: column 'timestamp' holds 1[0-9]{9}, where milli"):
        Raw(config)


@pytest.mark.parametrize("name", ["yelp", "amazon-2018"])
def test_ids_that_json_files_write_differently(tmp_path, name, capsys):
    """One in other letters is named; all of them are an error; white space is nothing."""
    config = write_layout(name, tmp_path)
    expected = Raw(config)
    field = b"business_id" if name == "yelp" else b"asin"
    file = next(
        path for path in tmp_path.iterdir() if "business" in path.name or "meta" in path.name
    )
    item = re.compile(rb'("' + field + rb'": ?")([^"]+)"')
    edit(file, lambda c: item.sub(rb'\1 \2 "', c))
    assert Raw(config).described.equals(expected.described)
    edit(file, lambda c: item.sub(lambda m: m[1] + m[2].swapcase() + b'"', c, count=1))
    Raw(config)
    assert "differently, in letter case: 1 items have no description" in capsys.readouterr().out
    edit(file, lambda c: item.sub(lambda m: m[1] + m[2].swapcase() + b'"', c))
    with pytest.raises(UserError, match="Ids differ in letter case"):
        Raw(config)


def test_names_of_json_that_are_numbers_or_lists(tmp_path):
    config = write_layout("yelp", tmp_path)
    file = tmp_path / "yelp_academic_dataset_business.json"
    text, number = (
        re.compile(rb'("business_id": ?"b7".*?"name": ?)' + value)
        for value in (b'"[^"]*"', b"2048")
    )
    edit(file, lambda c: text.sub(rb"\g<1>2048", c))
    assert Raw(config).row("b7")["title"] == "2048"
    edit(file, lambda c: number.sub(rb'\g<1>["A", "<!-- x -->", {"b": "B"}, "<b> </b>"]', c))
    assert Raw(config).row("b7")["title"] == "A, B"


def test_amazon_2014_as_json_and_times_as_strings(tmp_path):
    config = write_layout("amazon-2014", tmp_path)
    expected = Raw(config)
    file = next(tmp_path.glob("meta_*"))

    def as_json(content):
        lines = content.decode().splitlines()
        return "\n".join(json.dumps(ast.literal_eval(line)) for line in lines).encode()

    edit(file, as_json)
    quoted = re.compile(rb'"unixReviewTime": (\d+)')
    edit(next(tmp_path.glob("reviews_*")), lambda c: quoted.sub(rb'"unixReviewTime": "\1"', c))
    raw = Raw(config)
    assert raw.interactions.equals(expected.interactions)
    assert raw.described.equals(expected.described)


def test_a_page_s_script_is_no_title(tmp_path):
    config = write_layout("amazon-2018", tmp_path)
    script = rb"<span class=\"a-size\"\n var aPageStart = (new Date()).getTime();"
    edit(
        tmp_path / "meta_Toys_and_Games.json.gz",
        lambda content: content.replace(b"Kid&#39;s <b>Toy</b> 7", script, 1),
    )
    assert Raw(config).row("B007")["title"] == ""
