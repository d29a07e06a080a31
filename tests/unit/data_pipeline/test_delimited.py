"""Delimited text: no row is lost, and what is malformed is named with its line."""

import csv
import gzip
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tssr_jax.data_pipeline.sources import delimited, tables, text_files
from tssr_jax.errors import UserError


def read(tmp_path, content, form=tables.COMMAS, **options):
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    chunk = tables.read_table(path, form, **options)
    return chunk.lines.tolist(), chunk.table.rows()


@pytest.fixture(name="small_blocks")
def fixture_small_blocks(monkeypatch):
    """Blocks of some bytes, so that rows, quotes and characters are cut."""
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 7)


def test_a_quote_inside_of_a_field_is_a_character(tmp_path, small_blocks):
    lines, rows = read(tmp_path, 'a,b,c\n1,7" vinyl,x\n2,12" vinyl,y\n3,z,"q ""r"" s"\n')
    assert lines == [2, 3, 4]
    assert rows == [("1", '7" vinyl', "x"), ("2", '12" vinyl', "y"), ("3", "z", 'q "r" s')]


def test_columns_that_are_not_read_are_checked_all_the_same(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('a,b,c\n1,2,6" long\n3,4,"open\n5,6,7\n8,9,"x"\n')
    with pytest.raises(UserError, match=r"table\.csv, line 3: a quote opens or closes a field"):
        list(tables.read_chunks(path, needed=("a", "b")))
    path.write_text("a,b,c\n1,2,3\n\n4,5\n")
    with pytest.raises(UserError, match=r"line 4 has 2 fields, line 1 has 3. Is a row broken"):
        list(tables.read_chunks(path, needed=("a",)))
    path.write_text("a,b,c\n1,2\n4,5,6,7\n")  # as many separators as two whole rows have
    with pytest.raises(UserError, match="line 2 has 2 fields"):
        list(tables.read_chunks(path, needed=("a",)))


def test_lines_are_the_file_s_own(tmp_path, small_blocks):
    content = '\na,b\n1,"x\n\ny"\n\n  \n2,z\r\n"3\n",w\n4,v'
    lines, rows = read(tmp_path, content)
    assert lines == [3, 8, 9, 11]
    assert rows == [("1", "x\n\ny"), ("2", "z"), ("3\n", "w"), ("4", "v")]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('1,2\n3,"never closed\n4,5\n', 3),
        ('1,2\n3,"x"y\n4,5\n', 3),
        ('1,2\n3,"x\n4,"y"\n5,6\n', 3),
        ('"a\nb",2\n\n3,"x\n4,"y"\n5,6\n', 5),
    ],
)
def test_an_odd_quote_is_told_with_its_line(tmp_path, small_blocks, content, line):
    with pytest.raises(UserError, match=rf"table.csv, line {line}: a quote opens or closes a"):
        read(tmp_path, "a,b\n" + content)


def test_backslashes_that_escape_quotes(tmp_path, small_blocks, capsys):
    content = 'a,b\n1,"plain"\n2,"a \\"b\\" c, d"\n3,"ends \\\\"\n4,"\\"x\\""\n'
    _, rows = read(tmp_path, content)
    assert rows == [("1", "plain"), ("2", 'a "b" c, d'), ("3", "ends \\\\"), ("4", '"x"')]
    assert "a backslash escapes quotes" in capsys.readouterr().out
    # By RFC 4180 a field may end with a backslash.
    assert read(tmp_path, 'a,b\n"C:\\","x"\n')[1] == [("C:\\", "x")]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_another_separator_is_found(tmp_path, separator, capsys):
    content = "user;item;x\nu,1;i;2\n".replace(";", separator)
    _, rows = read(tmp_path, content, needed=("user", "item"))
    assert rows == [("u,1", "i", "2")]
    assert f"fields are separated by {separator!r}" in capsys.readouterr().out


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("packed", [False, True])
def test_encodings_and_ends_of_lines(tmp_path, newline, encoding, packed, small_blocks):
    content = newline.join(["a,b", "1,Café", "2,b\x0bc\x85d", ""]).encode(encoding)
    form = tables.COMMAS._replace(encoding="latin-1")
    lines, rows = read(tmp_path, gzip.compress(content) if packed else content, form)
    assert lines == [2, 3] and rows == [("1", "Café"), ("2", "b\x0bc\x85d")]


def test_carriage_returns_with_a_line_feed_at_the_end(tmp_path, small_blocks):
    """Some programs add one to a file of an old system."""
    assert read(tmp_path, "a,b\r1,2\r3,4\r\n")[1] == [("1", "2"), ("3", "4")]
    assert read(tmp_path, "a,b\r1,2\r3,4\n")[1] == [("1", "2"), ("3", "4")]


def test_what_is_not_utf_8_is_told(tmp_path, small_blocks):
    for line, content in ((3, b"a,b\n1,x\n2,\xe9\n"), (4, "a,b\n1,é\n2,x\n".encode() + b"3,\xe9")):
        with pytest.raises(UserError, match=rf"line {line} is not UTF-8 \(byte 0xe9 at its place"):
            read(tmp_path, content)
    # A mixture is not what the source's own encoding is for.
    form = tables.COMMAS._replace(encoding="latin-1")
    with pytest.raises(UserError, match="line 3 is not UTF-8"):
        read(tmp_path, "a,b\n1,é\n".encode() + b"3,\xe9", form)


def test_headers(tmp_path):
    with pytest.raises(UserError, match="two columns 'b'"):
        read(tmp_path, "a,b,b\n1,2,3\n")
    with pytest.raises(UserError, match=r"no column 'z'; its header line names 'a', 'b'\. Help"):
        read(tmp_path, "a,b\n1,2\n", needed=("z",), hint="Help.")
    with pytest.raises(UserError) as told:
        read(tmp_path, ",".join(f"column {i}" for i in range(500)) + "\n1\n", needed=("z",))
    assert len(str(told.value)) < 500
    with pytest.raises(UserError, match="line 2 has 1 fields, 2 belong there: a, b"):
        read(tmp_path, "1,2\n3\n", delimited.Format(columns=("a", "b")))


FIELDS = st.text(st.sampled_from('ab,;"\n\\ é'), max_size=4)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 3).flatmap(
        lambda n: st.lists(st.lists(FIELDS, min_size=n, max_size=n), min_size=1)
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_what_python_writes_is_read(tmp_path_factory, rows, newline, quoting):
    """All rows, with the line of the file where each begins."""
    rows = [row for row in rows if any(field.strip() for field in row)]
    if not rows:
        return
    file = io.StringIO(newline="")
    names = [f"c{i}" for i in range(len(rows[0]))]
    writer = csv.writer(file, lineterminator=newline, quoting=quoting)
    writer.writerow(names)
    starts = []
    for row in rows:
        starts.append(file.getvalue().count("\n") + 1)
        writer.writerow(row)
    folder, content = tmp_path_factory.mktemp("csv"), file.getvalue()
    ends = [*starts[1:], content.count("\n") + 1]
    physical = content.split("\n")
    ambiguous = [
        start
        for start, end in zip(starts, ends, strict=True)
        if end - start > 1
        and len(names) > 1
        and all(line.count(",") == len(names) - 1 for line in physical[start - 1 : end - 1])
    ]
    if ambiguous:
        if '\\"' not in content:  # else backslashes are tried
            with pytest.raises(UserError, match=f"lines {ambiguous[0]} to .* a row of its own"):
                read(folder, content)
        return
    lines, found = read(folder, content)
    assert lines == starts
    assert found == [tuple(field or None for field in row) for row in rows]


@pytest.mark.parametrize(
    ("content", "needed", "told"),
    [
        # A quote opens an id in line 3, and another one closes it in line 4.
        ('a,b\n1,2\n"3,4\n5",6\n7,8\n', "a", "lines 3 to 4: .* column 'a' holds a line end"),
        # The same in a text; lines 2 to 4 look like rows.
        ('a,b\n1,"2\n3,4\n5,6"\n7,8\n', "a", "lines 2 to 4: .* each of these lines looks like"),
        ('a,b,c\n1,"2,x\n3,4"",x\n5,6",x\n', "a", "lines 2 to 4: .* each of these lines looks"),
        ('a,"b\nc"\n1,2\n', "a", "line 1: the header has a quote that is not closed"),
    ],
)
def test_a_pair_of_odd_quotes_is_told(tmp_path, small_blocks, content, needed, told):
    with pytest.raises(UserError, match=told):
        read(tmp_path, content, needed=[needed])


def test_texts_over_several_lines_are_read(tmp_path, small_blocks):
    content = 'a,b,c\n1,"one\ntwo, three\n",x\n2,"x\n\n""y""",z\n'
    lines, found = read(tmp_path, content, needed=["a"])
    assert lines == [2, 5] and found == [("1", "one\ntwo, three\n", "x"), ("2", 'x\n\n"y"', "z")]


def test_backslashes_are_tried_where_rows_do_not_fit(tmp_path, small_blocks, capsys):
    """By RFC 4180 the first is a row of another width, the second swallows a row."""
    for text, expected in (('"5\\", wide"', '5", wide'), ('"5\\""', '5"')):
        content = f'a,b,c\n1,{text},x\n2,12",y\n'
        assert read(tmp_path, content, needed=["a"])[1] == [("1", expected, "x"), ("2", '12"', "y")]
        assert "a backslash escapes quotes" in capsys.readouterr().out
