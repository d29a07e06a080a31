"""Files of one object a line: what is read, and what is told."""

import json
from collections import Counter

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tssr_jax.data_pipeline.sources import json_lines, text_files
from tssr_jax.data_pipeline.sources.ids import DIFFERENCES, NUMBER, loose
from tssr_jax.errors import UserError


@pytest.fixture(name="read")
def fixture_read(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 50)

    def read(content, fields=("a", "b"), most=0):
        path = tmp_path / "file.json"
        path.write_text(content)
        chunks = list(json_lines.read_chunks(json_lines.BadLines(path, most, Counter()), fields))
        rows = [row for chunk in chunks for row in chunk.table.rows()]
        return [line for chunk in chunks for line in chunk.lines.tolist()], rows

    return read


@pytest.fixture(name="records")
def fixture_records(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 50)

    def records(lines, wanted):
        path = tmp_path / "file.json"
        path.write_text("".join(f"{line}\n" for line in lines))
        counts = Counter()
        bad = json_lines.BadLines(path, 0, counts)
        return list(json_lines.read_records(bad, "id", pl.Series(wanted))), counts

    return records


def test_lines_are_the_file_s_own_and_numbers_may_be_strings(read):
    content = '{"a": 1, "b": "x"}\n\n{"a": "2"}\n   \n{"b": 1700000000123, "a": null}'
    lines, rows = read(content)
    assert lines == [1, 3, 5]
    assert rows == [("1", "x"), ("2", None), (None, "1700000000123")]


def test_only_a_line_feed_ends_a_line(read):
    lines, rows = read('{"a": "x\u2028y\x85z"}\n{"a": "w"}\n')
    assert lines == [1, 2] and [a for a, _ in rows] == ["x\u2028y\x85z", "w"]


def test_an_array_is_told_in_a_few_words(read):
    with pytest.raises(
        UserError, match="is one JSON array; it must have one object a line"
    ) as told:
        read(json.dumps([{"a": "x" * 1000}] * 100))
    assert len(str(told.value)) < 300


def test_skipping_is_no_advice_where_nothing_can_be_read(read):
    with pytest.raises(UserError, match=r"line 1: .*No line before it could be read") as told:
        read('"text"\n"more"\n')
    assert "max_bad_lines" not in str(told.value)
    with pytest.raises(UserError, match=r"line 2: .*max_bad_lines=1"):
        read('{"a": 1}\n"text"\n')
    assert read('{"a": 1}\n"text"\n{"a": 2}\n', most=1)[0] == [1, 3]


@pytest.mark.parametrize(
    "line",
    [
        r'{"id": "a\/b", "title": "T"}',
        r'{"id": "\u0061/b", "title": "T"}',
        '{"parts": {"id": "other"}, "id": "a/b", "title": "T"}',
        '{"title": "T", "id": "a/b"}',
        "{'id': 'a/b', 'title': 'T', 'none': None}",
        """{'id': "a/b", 'title': 'T'}""",
    ],
)
def test_a_wanted_object_is_found_however_its_id_is_written(records, line):
    found, counts = records(['{"id": "x", "title": "X"}', line, '{"id": "y"}'], ["a/b"])
    assert [(number, record["id"], record["title"]) for number, record in found] == [
        (2, "a/b", "T")
    ]
    assert counts["item_rows_of_other_items"] == 2


ODD = st.text(st.sampled_from("ab'\"\\/\t{}:, é\u200b"), min_size=1, max_size=6).filter(str.strip)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ODD, min_size=1, max_size=4, unique_by=str.strip), st.booleans(), st.booleans())
def test_any_id_is_found(records, ids, python, inner):
    """Nothing decides but the object itself, however an id is escaped or quoted."""
    objects = [{"inner": {"id": "x"}, "id": item} if inner else {"id": item} for item in ids]
    # A Python literal begins with {' here.
    lines = [repr(one) if python else json.dumps(one) for one in objects]
    found, counts = records(lines, [item.strip() for item in ids])
    assert [record["id"] for _, record in found] == [item.strip() for item in ids]
    assert not counts["item_rows_of_other_items"]


def test_ids_written_alike_are_handed_on(records):
    """`descriptions` mends or names them; others are left out."""
    lines = [f'{{"id": "{item}"}}' for item in (" i0 ", "I1", "\u200bi2", "i9", "0", "1.0")]
    found, counts = records([*lines, '{"id": 2.0}'], ["i0", "i1", "i2", "000", "1", "2"])
    assert [r["id"] for _, r in found] == ["i0", "I1", "\u200bi2", "0", "1.0", "2.0"]
    assert counts["item_rows_of_other_items"] == 1


@pytest.mark.parametrize("value", ['{"$oid": "u"}', '["u"]', "true"])
def test_an_id_that_is_no_text_is_malformed(read, value):
    with pytest.raises(UserError, match=r"line 2: .*'a' is neither a string nor a number"):
        read(f'{{"a": "u"}}\n{{"a": {value}}}\n')
    assert read('{"a": "[u]"}\n{"a": "true"}\n')[1] == [("[u]", None), ("true", None)]


IDS = st.text(st.sampled_from("aAsß\u017féÉe\u0301\u200b\u00a0\x00 .019ﬁ"), max_size=6)


@settings(max_examples=500, deadline=None)
@given(IDS, IDS)
def test_ids_that_differ_as_is_told_have_one_loose_form(one, other):
    forms = pl.DataFrame({"item": [one, other]}).select(NUMBER.alias("number"), **DIFFERENCES)
    alike = [n for n in forms.columns if forms[n][0] == forms[n][1] and forms[n][0] is not None]
    if alike:
        assert loose(one) == loose(other)


def test_ids_that_are_numbers(records):
    found, _ = records(['{"id": 7, "title": "T"}'], ["7"])
    assert found == [(1, {"id": "7", "title": "T"})]
    with pytest.raises(UserError, match=r"line 1: .*no object with a field 'id'"):
        records(['{"id": true}'], ["7"])
