"""What is known of users: the users' file, values and codes."""

from collections import Counter

import numpy as np
import pytest

from tests.support.raw_data import tiny_config
from tssr_jax.config import default_config
from tssr_jax.data_pipeline import digests
from tssr_jax.data_pipeline.prepare import prepare
from tssr_jax.data_pipeline.profiles import code_of, sizes, values_of
from tssr_jax.data_pipeline.sources import SOURCES, Dump, RawFiles
from tssr_jax.data_pipeline.sources.values import spelled
from tssr_jax.data_pipeline.store import PROFILE, SequenceStore, open_store
from tssr_jax.errors import UserError

FIELDS = {"gender": ["F", "M"], "age": ["20s", "30s", "40s"]}


@pytest.mark.parametrize(
    ("profile", "code"),
    [
        ({}, 0),
        ({"gender": "F"}, 1),
        ({"gender": "M"}, 2),
        ({"age": "20s"}, 3),  # 3 genders, with the unknown one
        ({"gender": "M", "age": "40s"}, 2 + 3 * 3),
        ({"gender": " M ", "age": "90s"}, 2),
        ({"gender": "", "age": None}, 0),
        ({"gender": float("nan"), "age": "NULL"}, 0),
    ],
)
def test_codes(profile, code):
    assert sizes(FIELDS) == (3, 4)
    assert code_of(profile, FIELDS) == code
    known = {name: str(value).strip() for name, value in profile.items()}
    assert values_of(code, FIELDS) == {n: v for n, v in known.items() if v in FIELDS[n]}


@pytest.mark.parametrize(
    ("value", "told"),
    [(30, "30"), (30.0, "30"), ("30.0", "30"), (0, "0"), (1.5, "1.5"), (np.float32(2), "2"),
     (10**19, f"{10**19}"),
     (True, "true"), ("True", "true"), (" x ", "x"), ("", None), ("nan", None), (None, None)],
)  # fmt: skip
def test_one_spelling(value, told):
    assert spelled(value) == told


def test_odd_names_of_fields(tmp_path):
    config = tiny_config(tmp_path)
    config.data.user_fields = ("n", "there", "age:group", "age")
    rows = [f"u{i},x,{i % 2}.0,a,{'True' if i % 2 else 'False'}" for i in range(40)]
    header = "user,n,there,age:group,age"
    (tmp_path / "raw" / "users.csv").write_text("\n".join([header, *rows]) + "\n")
    fields = prepare(config.data).profile_fields
    assert fields == {"n": ["x"], "there": ["0", "1"], "age:group": ["a"], "age": ["false", "true"]}


def test_another_users_file_is_other_data(tmp_path):
    one = prepare(data_with_users(tmp_path / "one", lines_of()).data)
    lines = [line.replace(",F,", ",M,", 1) if "u1" in line else line for line in lines_of()]
    lines = [line.replace("u2,F", "u2,M") for line in lines]
    other = prepare(data_with_users(tmp_path / "two", lines[::-1]).data)
    same = prepare(data_with_users(tmp_path / "three", lines_of()[::-1]).data)
    assert digests.of_records(one.folder) == digests.of_records(same.folder)
    assert digests.of_records(one.folder) != digests.of_records(other.folder)


def test_a_field_that_is_not_read_is_an_error():
    with pytest.raises(UserError, match="'size' is no field of users that this run reads; those"):
        code_of({"size": "L"}, FIELDS)
    with pytest.raises(UserError, match="it has none"):
        code_of({"size": "L"}, {})


def data_with_users(folder, lines, **fields):
    """Section `data` of a configuration with a users.csv."""
    config = tiny_config(folder)
    config.data.user_fields = ("gender", "age")
    config.data.update(fields)
    (folder / "raw" / "users.csv").write_text("user,gender,age\n" + "\n".join(lines) + "\n")
    return config


def lines_of(number=40):
    """Users 0 to 29 are of two genders, 30 to 34 of a third; each fifth tells no age."""
    gender = ["F", "M", "x"]
    return [
        f"u{i},{gender[2 if i >= 30 else i % 2]},{'' if i % 5 == 0 else 20 + 10 * (i % 3)}"
        for i in range(number)
        if i < 35
    ]


def test_codes_of_prepared_users(tmp_path):
    config = data_with_users(tmp_path, lines_of())
    data = prepare(config.data)
    # The most frequent first: 15 F, 15 M, 5 x; 10 times 30, 9 times 20 and 40.
    assert data.profile_fields == {"gender": ["F", "M", "x"], "age": ["30", "20", "40"]}
    assert data.report["users_without_a_row_in_the_users_file"] == 5
    told = dict(zip(data.user_ids, data.profiles.tolist(), strict=True))
    assert told["u2"] == code_of({"gender": "F", "age": "40"}, data.profile_fields) == 1 + 4 * 3
    assert told["u30"] == code_of({"gender": "x"}, data.profile_fields) == 3
    assert told["u39"] == 0
    for gib in (2.0, 0.0):  # in memory, and on disk
        config.data.in_memory_gib = gib
        store = open_store(data, config)
        assert store.side == {"profiles": PROFILE}
        users = np.array([3, 9, 0])
        found = store.rows(users).last(PROFILE, store.lengths[users], 20).numpy()
        for row, user in zip(found, users, strict=True):
            number = store.lengths[user]
            assert not row[: 20 - number].any()
            assert (row[20 - number :] == data.profiles[user]).all()


def test_data_without_profiles_keeps_its_key_and_columns(tmp_path):
    config = data_with_users(tmp_path, lines_of())
    with_profiles = prepare(config.data)
    config.data.user_fields = ()
    plain = prepare(config.data)
    assert plain.key != with_profiles.key and plain.profiles is None
    assert open_store(plain, config).side == {}
    assert isinstance(open_store(plain, config), SequenceStore)
    # Another users' file is other data; without fields nobody reads it.
    (tmp_path / "raw" / "users.csv").write_text("user,gender,age\nu1,F,20\n")
    assert prepare(config.data).key == plain.key


@pytest.mark.parametrize(
    ("lines", "fields", "told"),
    [
        (["x1,F,20", "x2,M,30"], {}, "has no row for any of the 40 users: 'u.*', 'x1' one of this"),
        ([*lines_of(), "u3,F,70"], {}, "user 'u3' is described differently in lines 5 and 37"),
        (lines_of(4), {}, "no value of 'gender' occurs in at least 5 users"),
        (lines_of(), {"user_fields": ("size",)}, "names 'size'; .*users.csv has the fields gender"),
        (lines_of(), {"user_fields": ("age", "age")}, "it must be different names of columns"),
        (lines_of(), {"user_fields": ("items",)}, "'items', which is a column of histories"),
        (lines_of(), {"source": "mind"}, "source 'mind' has no file of users; these have: ml100k"),
        ([",F,20"], {}, "line 2.*user"),
    ],
)
def test_what_makes_no_sense(tmp_path, lines, fields, told):
    config = data_with_users(tmp_path, lines, **fields)
    with pytest.raises(UserError, match=told):
        prepare(config.data)


def test_rows_that_disagree_can_be_settled_by_the_first(tmp_path):
    lines = [*lines_of(), "u3,F,70"]
    data = prepare(data_with_users(tmp_path, lines, repeated_items="first").data)
    told = dict(zip(data.user_ids, data.profiles.tolist(), strict=True))
    assert values_of(told["u3"], data.profile_fields) == {"gender": "M", "age": "20"}


def test_no_users_file(tmp_path):
    config = tiny_config(tmp_path)
    config.data.user_fields = ("gender",)
    with pytest.raises(UserError, match=r"has no users.csv, users.csv.gz or users.parquet"):
        prepare(config.data)


@pytest.mark.parametrize(
    ("source", "name", "content", "expected"),
    [
        ("ml100k", "u.user", "1|24|M|writer|85711\n2|53|F|other|94043\n", ["M", "F"]),
        ("ml1m", "users.dat", "1::F::1::10::48067\n2::M::56::16::70072\n", ["F", "M"]),
        ("hm", "customers.csv", "customer_id,gender,age\n1,M,49\n2,,25\n", ["M", None]),
    ],
)
def test_layouts(tmp_path, source, name, content, expected):
    (tmp_path / name).write_text(content)
    data = default_config().data
    data.update(source=source, user_fields=("gender",))
    layout = {"ml100k": "u.data", "ml1m": "dat"}.get(source, "kaggle")
    files = RawFiles("", layout, tmp_path, tmp_path, users=tmp_path / name)
    table = SOURCES[source].users(Dump(files, data, Counter()))
    assert table["user"].to_list() == ["1", "2"] and table["gender"].to_list() == expected
