"""One's own vectors of items: found by id, scaled, and checked."""

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from tssr_jax.config import default_config
from tssr_jax.content.own_vectors import own_vectors
from tssr_jax.errors import UserError

IDS = ["a", "b", "c", "d"]
VECTORS = np.array([[3.0, 4.0], [0.0, -2.0], [1e-30, 0.0]], np.float32)
# Of a, b, d; c has none.
EXPECTED = [[0, 0], [0.6, 0.8], [0, -1], [0, 0], [1, 0]]


@pytest.fixture(name="data")
def fixture_data(tmp_path):
    data = default_config().data
    data.raw_dir = str(tmp_path)
    return data


def write(folder, vectors=VECTORS, ids=("a", "b", "d")):
    np.save(folder / "vectors.npy", vectors)
    (folder / "vectors.txt").write_text("".join(f"{item}\n" for item in ids))


def write_table(folder, vectors, ids=("a", "b", "d", "c"), kind=None):
    kind = kind or pl.List(pl.Float64)
    pl.DataFrame({"item": ids, "vector": pl.Series(vectors, dtype=kind)}).write_parquet(
        folder / "items.parquet"
    )


def test_an_array_with_ids_in_another_order(tmp_path, data, capsys):
    write(tmp_path, np.vstack([VECTORS[[2, 0, 1]], [[7, 7]]]), ("d", "a", "b", "unknown"))
    found = own_vectors(IDS, data)
    assert found.table.dtype == np.float32
    np.testing.assert_allclose(found.table, EXPECTED, atol=1e-7)
    assert "width 2; 1 of 4 items have none" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_safetensors_of_any_type(tmp_path, data, dtype):
    save_file({"embedding": np.array([[3, 4], [0, -2]], dtype)}, tmp_path / "vectors.safetensors")
    (tmp_path / "vectors.txt").write_text("a\r\nb\r\n")
    table = own_vectors(["a", "b"], data).table
    np.testing.assert_allclose(table, EXPECTED[:3], atol=1e-7)


@pytest.mark.parametrize("kind", [pl.List(pl.Float32), pl.Array(pl.Float32, 2)])
def test_a_column_of_items(tmp_path, data, kind):
    write_table(tmp_path, [*VECTORS.tolist(), None], kind=kind)
    np.testing.assert_allclose(own_vectors(IDS, data).table, EXPECTED, atol=1e-7)


def test_the_key_is_of_the_vectors(tmp_path, data):
    write(tmp_path)
    first = own_vectors(IDS, data)
    write_table(tmp_path, [*VECTORS.tolist(), None])
    (tmp_path / "vectors.npy").unlink()
    assert own_vectors(IDS, data).key == first.key
    write_table(tmp_path, [*(-VECTORS).tolist(), None])
    assert own_vectors(IDS, data).key != first.key


def test_ids_that_are_one_number_are_one(tmp_path, data):
    write(tmp_path, VECTORS[:2], ("1.0", "2.0"))
    np.testing.assert_allclose(own_vectors(["1", "2"], data).table[1:], EXPECTED[1:3], atol=1e-7)


@pytest.mark.parametrize(
    ("vectors", "ids", "message"),
    [
        ([[1.0, np.nan], [1, 2]], "ab", r"vector of item 'a' has NaN.*1 vectors have"),
        ([[1.0, 2], [1, np.inf]], "ab", "vector of item 'b' has NaN"),
        ([[1.0, 2], [2, 1]], "aa", "two vectors of item 'a', numbers 1 and 2"),
        ([[1.0, 2], [2, 1]], "abc", "3 lines, and .* 2 vectors"),
        ([[1.0, 2], [2, 1]], ["a", " "], "line 2: there is no id"),
        ([1.0, 2], "ab", r"holds float64 \(2,\)"),
        (np.zeros((2, 0)), "ab", r"holds float64 \(2, 0\)"),
        (np.array([["x"], ["y"]]), "ab", "vectors are numbers"),
        ([[1.0, 2], [2, 1]], "AB", "Ids differ in letter case"),
    ],
)
def test_malformed_arrays(tmp_path, data, vectors, ids, message):
    write(tmp_path, np.array(vectors), ids)
    with pytest.raises(UserError, match=message):
        own_vectors(IDS, data)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 2.0], [1.0], None, None], "'a' has 2 numbers, that of item 'b'.*row 2.* has 1"),
        ([[1.0, None], [1.0, 2.0], None, None], "'a' has NaN, infinite or empty"),
        ([[], [], None, None], "no item has a vector"),
        ([None] * 4, "no item has a vector"),
    ],
)
def test_malformed_columns(tmp_path, data, vectors, message):
    write_table(tmp_path, vectors)
    with pytest.raises(UserError, match=message):
        own_vectors(IDS, data)


def test_a_column_of_texts(tmp_path, data):
    write_table(tmp_path, ["[1, 2]"] * 4, kind=pl.String)
    with pytest.raises(UserError, match="of type String; vectors are lists of numbers"):
        own_vectors(IDS, data)


def test_a_table_without_the_column(tmp_path, data):
    pl.DataFrame({"item": IDS}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(UserError, match=r"no column 'vector'.*lists of numbers"):
        own_vectors(IDS, data)


def test_nothing_there(tmp_path, data):
    with pytest.raises(UserError, match=r"no vectors.npy, vectors.safetensors or items.parquet"):
        own_vectors(IDS, data)
    np.save(tmp_path / "vectors.npy", VECTORS)
    with pytest.raises(UserError, match=r"Ids of vectors.npy: .* has no vectors.txt"):
        own_vectors(IDS, data)
    (tmp_path / "vectors.npy").write_bytes(b"no array")
    (tmp_path / "vectors.txt").write_text("a\n")
    with pytest.raises(UserError, match="no readable array"):
        own_vectors(IDS, data)


def test_repeated_items_may_be_allowed(tmp_path, data):
    write(tmp_path, np.array([[3.0, 4], [9, 9], [0, -2]]), ("a", "a", "b"))
    data.repeated_items = "first"
    np.testing.assert_allclose(own_vectors(["a", "b"], data).table, EXPECTED[:3], atol=1e-7)
