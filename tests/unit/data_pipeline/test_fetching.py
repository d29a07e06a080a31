"""Downloads: verified, whole, or not there at all."""

import dataclasses
import hashlib
import subprocess
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from configs import ml100k
from tssr_jax.data_pipeline import fetching
from tssr_jax.data_pipeline.sources import SOURCES, Dump, movielens
from tssr_jax.errors import UserError


@pytest.fixture(name="wheel")
def fixture_wheel(tmp_path):
    """A stand-in for RecBole's wheel, and the fields that describe it."""
    path = tmp_path / "index" / fetching.RECBOLE.file_name
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        folder = "recbole/dataset_example/ml-100k/ml-100k"
        header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        file.writestr(f"{folder}.inter", header + "7\t3\t5\t881250949\n")
        header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        file.writestr(f"{folder}.item", header + "3\tFour Rooms\t1995\tDrama Thriller\n")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return dataclasses.replace(fetching.RECBOLE, sha256=digest), path


@pytest.fixture(name="index")
def fixture_index(monkeypatch, wheel):
    """Stands in for pip: copies the wheel's bytes, as `damage` left them."""
    calls = []

    def run(command, **_):
        calls.append(command)
        target = Path(command[command.index("--dest") + 1]) / wheel[1].name
        target.write_bytes(wheel[1].read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetching.subprocess, "run", run)
    return calls


def test_a_wheel_is_fetched_once_without_dependencies(wheel, index, tmp_path):
    first = fetching.fetch_wheel(wheel[0], tmp_path / "downloads")
    assert fetching.fetch_wheel(wheel[0], tmp_path / "downloads") == first
    assert first.read_bytes() == wheel[1].read_bytes()
    assert len(index) == 1 and "--no-deps" in index[0] and "recbole==1.2.1" in index[0]


def test_a_truncated_wheel_is_refused_and_not_kept(wheel, index, tmp_path):
    wheel[1].write_bytes(wheel[1].read_bytes()[:-10])
    with pytest.raises(UserError, match=r"damaged or not the expected file: \d+ bytes"):
        fetching.fetch_wheel(wheel[0], tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_wheel_damaged_in_the_cache_is_named(wheel, index, tmp_path):
    path = fetching.fetch_wheel(wheel[0], tmp_path / "downloads")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"100 bytes .* Delete it and run again"):
        fetching.fetch_wheel(wheel[0], tmp_path / "downloads")


def test_pip_failing_is_reported_in_one_paragraph(wheel, monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], 1, "", "noise\nERROR: No matching distribution\n")
    monkeypatch.setattr(fetching.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"No matching distribution.*Put recbole-1\.2\.1") as error:
        fetching.fetch_wheel(wheel[0], tmp_path / "downloads")
    assert "\n" not in str(error.value)


def test_an_archive_is_verified(tmp_path):
    served = tmp_path / "ml-100k.zip"
    served.write_bytes(b"data")
    digest = hashlib.sha256(b"data").hexdigest()
    archive = fetching.Archive(served.as_uri(), digest)
    path = fetching.fetch_archive(archive, tmp_path / "downloads")
    assert path.read_bytes() == b"data"
    with pytest.raises(fetching.NotReachableError, match="sent something else .* " + "0" * 64):
        fetching.fetch_archive(
            dataclasses.replace(archive, sha256="0" * 64), tmp_path / "other_downloads"
        )
    assert list((tmp_path / "other_downloads").iterdir()) == []


def test_movielens_falls_back_to_the_wheel_and_says_so(wheel, index, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(movielens, "_URL", (tmp_path / "absent").as_uri() + "/")
    source = dataclasses.replace(SOURCES["ml100k"], wheel=wheel[0])
    data = ml100k.get_config().data
    data.cache_dir = str(tmp_path / "cache")
    files = source.locate(data)
    dump = Dump(files, data, Counter())
    (rows,) = source.interactions(dump)
    assert rows.rows() == [("7", "3", 881250949_000)]
    items = source.items(dump, rows["item"])
    assert items.rows() == [("3", "Four Rooms (1995)", "Drama, Thriller")]
    assert "not reachable" in capsys.readouterr().out
    # The next run keeps the origin without asking the server again.
    assert source.locate(data).origin == "package recbole==1.2.1"
    assert capsys.readouterr().out == ""
