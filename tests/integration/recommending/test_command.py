"""Files of histories in, files of lists out."""

import gzip
import json
import subprocess
import sys

import polars as pl
import pytest

from tests.support.runs import ROOT
from tssr_jax.errors import UserError
from tssr_jax.recommending.forms import Form
from tssr_jax.recommending.histories import HistoryFile
from tssr_jax.recommending.recommend import Request, run_recommend

HISTORIES = {"a": ["i3", "i4"], "b": ["i7", "unknown", "i8"], "c": [], "d": ["i1"]}
ROWS = [(user, item) for user, items in HISTORIES.items() for item in items or [None]]


def write(folder, ending):
    path = folder / f"histories{ending}"
    if ending == ".jsonl":
        lines = [json.dumps({"user": user, "items": items}) for user, items in HISTORIES.items()]
        path.write_text("\n".join(lines) + "\n")
    elif ending == "-lists.parquet":
        columns = {"user": list(HISTORIES), "items": list(HISTORIES.values())}
        pl.DataFrame(
            columns, schema={"user": pl.String, "items": pl.List(pl.String)}
        ).write_parquet(path)
    else:
        table = pl.DataFrame(ROWS, schema=["user", "item"], orient="row")
        if ending == ".parquet":
            table.write_parquet(path)
        elif ending == ".csv":
            table.write_csv(path)
        else:
            path.write_bytes(gzip.compress(table.write_csv().encode()))
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".csv.gz", ".parquet", "-lists.parquet"])
def test_histories_are_read_from(tmp_path, ending):
    file = HistoryFile(write(tmp_path, ending))
    assert {history.user: history.items for history in file} == HISTORIES
    assert [history.user for history in file] == list(HISTORIES)  # in their order, again
    assert file.count() == (None if ending in {".csv", ".csv.gz", ".parquet"} else len(HISTORIES))


def histories_in(path, **columns):
    """(user, items, times) of each history; events are not read."""
    histories = list(HistoryFile(path, Form(**columns)))
    assert all(history.events is None for history in histories)
    return [history[:3] for history in histories]


def test_blanks_around_users_are_not_theirs(tmp_path):
    path = tmp_path / "histories.csv"
    path.write_text("user,item\na,i1\n a , i2 \nb,i3\n")
    assert histories_in(path) == [("a", ["i1", "i2"], None), ("b", ["i3"], None)]
    path.write_text("user,item\na,i1\nb,i2\n a ,i3\n")
    with pytest.raises(UserError, match="line 4: user 'a' comes again"):
        list(HistoryFile(path))


def test_ids_may_be_numbers_and_users_have_none(tmp_path):
    path = tmp_path / "histories.jsonl"
    path.write_text('{"items": [5, "007 "]}\n\n{"items": [], "user": 3}\n')
    assert histories_in(path) == [("1", ["5", "007"], None), ("3", [], None)]


TIMED = [("a", ["i1", "i2"], [60.0, 90.5]), ("b", [], []), ("c", ["i3"], [86400.0])]


def test_times_are_read_where_there_are_any(tmp_path):
    path = tmp_path / "histories.jsonl"
    rows = [{"user": user, "items": items, "times": times} for user, items, times in TIMED]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert histories_in(path) == TIMED
    path = tmp_path / "histories.csv"
    path.write_text("user,item,at\na,i1,60\na,i2,90.5\nb,,\nc,i3,1970-01-02\n")
    assert histories_in(path, time="at") == TIMED
    assert histories_in(path) == [(user, items, None) for user, items, _ in TIMED]
    table = pl.DataFrame({"user": ["a", "b", "c"], "items": [["i1", "i2"], [], ["i3"]]})
    table = table.with_columns(times=pl.Series([[60.0, 90.5], [], [86400.0]]))
    table.write_parquet(tmp_path / "histories.parquet")
    assert histories_in(tmp_path / "histories.parquet") == TIMED
    for unit in ("ms", "us", "ns"):
        dates = pl.col("times").list.eval((pl.element() * 1e6).cast(pl.Datetime("us")))
        dates = dates.cast(pl.List(pl.Datetime(unit)))
        table.with_columns(dates).write_parquet(tmp_path / "histories.parquet")
        assert histories_in(tmp_path / "histories.parquet") == TIMED


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_json_lines_are_read_as_all_text_is(tmp_path, encoding, newline):
    path = tmp_path / "histories.jsonl"
    lines = ['{"user": "\u00fc", "items": ["i1"]}', "", '{"items": ["i2"]}', ""]
    path.write_bytes(newline.join(lines).encode(encoding))
    assert histories_in(path) == [("\u00fc", ["i1"], None), ("3", ["i2"], None)]
    path.write_bytes(b"")
    assert not list(HistoryFile(path))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "x.jsonl",
            '{"items": ["i1"], "times": [1, 2]}\n',
            "line 1 .* not a number of sec",
        ),
        ("x.jsonl", '{"items": ["i1"], "times": ["1"]}\n', "line 1 .* not a number of sec"),
        ("x.jsonl", '{"items": ["a", "b"], "times": [2, 1]}\n', "user '1' is not oldest first"),
        ("x.csv", "user,item,timestamp\na,i1,now\n", "line 2: column 'timestamp' holds 'now'"),
        ("x.jsonl", '{"items": ["i1"]}\n{"items": \n', "line 2 is no history"),
        ("x.jsonl", '{"user": "a"}\n', "line 1 is no history .'items' is missing"),
        ("x.jsonl", '{"items": [1.5]}\n', "line 1 is no history .1.5 is no id"),
        ("x.jsonl", "[1]\n", "line 1 is no history"),
        ("x.jsonl", '{"items": "50"}\n', "line 1 is no history .'items' is '50', no list"),
        ("x.jsonl", '{"items": ["i1"], "user": " "}\n', "line 1 is no history .its user is empty"),
        ("x.jsonl", '{"items": ["i1"], "user": "\\ud83d"}\n', "line 1 is no history"),
        ("x.jsonl", "[" * 100_000 + "\n", "line 1 is no history"),
        ("x.jsonl", '{"items": ["a"], "times": [1700000000000]}\n', "x.jsonl, user '1': Times of"),
        ("x.jsonl", '{"items": ["a"], "timestamps": [1]}\n', "'timestamps' is not read; call"),
        ("x.jsonl", '{"items": ["a"], "times": [NaN]}\n', "x.jsonl, user '1': Times of"),
        ("x.csv", 'user,item\n"a,i1\nb,i2\nc",i3\n', "lines 2 to 4: .* 'user' holds a line end"),
        ("x.parquet", "no table", "x.parquet is not a readable Parquet file"),
        ("x.csv", "user,item\na,i1\n , i2\n", "line 3: the user is missing"),
        ("x.csv", "user,item\na,i1\nb,i2\na,i3\n", "line 4: user 'a' comes again"),
        ("x.csv", "user,item\na,i1\n,i2\n", "line 3: the user is missing"),
        ("x.csv", "user,thing\na,i1\n", "no column 'item'"),
        ("x.txt", "a", r"must end in .jsonl, .csv"),
    ],
)
def test_histories_that_make_no_sense(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        list(HistoryFile(tmp_path / name))


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_columns_beside_the_ids_are_read_with_any_separator(tmp_path, separator):
    path = tmp_path / "histories.csv"
    rows = ["user,item,timestamp", "a,i1,60", "a,i2,90.5", "b,,", "c,i3,1970-01-02"]
    path.write_text("\n".join(rows).replace(",", separator) + "\n")
    assert histories_in(path) == TIMED


def test_whole_users_that_a_program_made_floats(tmp_path):
    path = tmp_path / "x.parquet"
    pl.DataFrame({"user": [1.0, 2.5], "items": [["i1"], ["i2"]]}).write_parquet(path)
    assert histories_in(path) == [("1", ["i1"], None), ("2.5", ["i2"], None)]
    pl.DataFrame({"user": [1.0, 2.0], "item": ["i1", "i2"]}).write_parquet(path)
    assert histories_in(path) == [("1", ["i1"], None), ("2", ["i2"], None)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"times": [["2023-01-01"]]},
            r"x.parquet: column 'times' must hold lists of seconds or dates; it",
        ),
        ({"times": [5]}, r"column 'times' must hold lists of seconds or dates; it has Int64"),
        ({"user": [["a"]]}, r"column 'user' must hold ids; it has List\(String\)"),
        ({"items": ["i1"]}, r"column 'items' must hold lists of ids; it has String"),
        ({"items": [[1.0]]}, r"column 'items' must hold lists of ids; it has List\(Float64\)"),
        ({"timestamp": [[5]]}, "'timestamp' is not read; call lists of times 'times'"),
    ],
)
def test_lists_of_another_type_are_told(tmp_path, columns, message):
    path = tmp_path / "x.parquet"
    pl.DataFrame({"user": ["a"], "items": [["i1"]]} | columns).write_parquet(path)
    with pytest.raises(UserError, match=message):
        list(HistoryFile(path))


def read(path):
    """{user: [(item, score)]} of any output."""
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return {x["user"]: [(i["item"], i["score"]) for i in x["items"]] for x in lines}
    table = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)
    lists = {}
    for row in table.sort("user", "rank").iter_rows(named=True):
        lists.setdefault(row["user"], []).append((row["item"], row["score"]))
    return lists


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_lists_are_written_as(workdir, recommender, tmp_path, ending, capsys):
    output = tmp_path / f"lists{ending}"
    # Two histories at a time, so that files are written in parts.
    run_recommend(workdir, Request(write(tmp_path, ".jsonl"), output, top_k=3, batch_size=1))
    lists = recommender.recommend(list(HISTORIES.values()), top_k=3)
    written = read(output)
    for user, expected in zip(HISTORIES, lists, strict=True):
        assert [item for item, _ in written[user]] == [x.item for x in expected.items]
        scores = [x.score for x in expected.items]
        assert [score for _, score in written[user]] == pytest.approx(scores, rel=1e-4)
    if ending == ".jsonl":
        second = json.loads(output.read_text().splitlines()[1])
        assert second["unknown"] == ["unknown"] and not second["popular"]
        assert second["stream_weights"]["id"] == pytest.approx(
            lists[1].stream_weights["id"], abs=1e-5
        )
    else:
        table = pl.read_parquet(output) if ending == ".parquet" else pl.read_csv(output)
        popular = table.filter(pl.col("popular").cast(pl.String).str.to_lowercase() == "true")
        assert set(popular["user"]) == {"c"} and popular["id_weight"].null_count() == 3
    told = " ".join(capsys.readouterr().out.split())
    assert "histories │ 4" in told and "popular items │ 1" in told
    assert "not in the catalogue │ 1" in told and "unknown │ 1" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["histories.jsonl", output.name]


def test_a_failure_leaves_the_output_of_before(workdir, tmp_path):
    histories, output = tmp_path / "histories.jsonl", tmp_path / "lists.parquet"
    histories.write_text('{"items": ["i1"]}\n' * 9 + "broken\n")
    output.write_text("before")
    with pytest.raises(UserError, match="line 10"):
        run_recommend(workdir, Request(histories, output, top_k=3, batch_size=1))
    assert output.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["histories.jsonl", "lists.parquet"]
    with pytest.raises(UserError, match="there is no folder"):
        run_recommend(workdir, Request(histories, tmp_path / "no" / "lists.csv"))
    with pytest.raises(UserError, match=r"must end in \.jsonl, \.csv, \.parquet"):
        run_recommend(workdir, Request(histories, tmp_path / "lists.txt"))


def test_filters_of_files(workdir, tmp_path, capsys):
    (tmp_path / "only").write_text("i9\ni2\n\nnothing\n")
    (tmp_path / "never").write_text("i2\n")
    output = tmp_path / "lists.jsonl"
    request = Request(
        write(tmp_path, ".jsonl"),
        output,
        top_k=3,
        only=tmp_path / "only",
        never=tmp_path / "never",
    )
    run_recommend(workdir, request)
    assert all([item for item, _ in x] == ["i9"] for x in read(output).values())
    told = " ".join(capsys.readouterr().out.split())
    assert "fewer items than asked for │ 4" in told and "not in the catalogue │ 1" in told
    (tmp_path / "only").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        run_recommend(workdir, request)


WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None  # importing it, which takes four seconds, is an error
from tssr_jax.main import main
main()
"""


def test_the_command_line(workdir, tmp_path):
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, "--mode=recommend"]
    command.append(f"--workdir={workdir}")
    missing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert missing.returncode == 1 and "--input=FILE and --output=FILE" in missing.stderr
    source, output = write(tmp_path, ".csv"), tmp_path / "lists.csv"
    (tmp_path / "only").write_text("i2\ni3\ni9\n")
    (tmp_path / "never").write_text("i9\n")
    filters = [f"--only_items={tmp_path / 'only'}", f"--never_items={tmp_path / 'never'}"]
    command += [f"--input={source}", f"--output={output}", *filters, "--top_k=2", "--keep_seen"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # What users have seen is kept, what is forbidden is not there.
    assert {frozenset(item for item, _ in x) for x in read(output).values()} == {
        frozenset(["i2", "i3"])
    }
