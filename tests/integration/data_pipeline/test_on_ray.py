"""What a cluster prepares equals what one process prepares, byte for byte."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import csv
from tests.support import buckets
from tests.support.clusters import two_nodes
from tests.support.eager_ray import EagerRay
from tests.support.raw_data import write_csv
from tests.support.raw_layouts import LAYOUTS, write_layout
from tests.support.runs import ROOT
from tssr_jax.data_pipeline import builder, interactions, on_ray
from tssr_jax.data_pipeline.prepare import PreparedData, prepare
from tssr_jax.engine import own_errors, ray_session
from tssr_jax.errors import UserError

pytest.importorskip("ray")


@pytest.fixture(name="ray", scope="module")
def fixture_ray():
    with two_nodes() as place, ray_session(place) as ray:
        yield ray


@pytest.fixture(autouse=True)
def fixture_small(monkeypatch):
    monkeypatch.setattr(interactions, "ROWS_PER_PART", 50)
    monkeypatch.setattr(builder, "USERS_PER_SHARD", 7)


def files(folder):
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def assert_equal_files(data, tmp_path, ray):
    """Prepares in both ways, each into a cache of its own."""
    folders = []
    for name, own in (("one", None), ("two", ray)):
        data.cache_dir = str(tmp_path / name)
        folders.append(prepare(data, own).folder)
    assert folders[0].name == folders[1].name  # the engine is not part of the key
    one, two = map(files, folders)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    assert sum(".tfrecord-" in name for name in one) > 3
    return folders


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_source(layout, ray, tmp_path):
    data = write_layout(layout, tmp_path / "raw").data
    with own_errors(ray):
        assert_equal_files(data, tmp_path, ray)


COLUMNS = ["user", "item", "timestamp", "event", "weight"]


def small_data(folder, rows, number_of_files, **own):
    """Interactions in so many files of a folder; items as they come."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "interactions").mkdir(parents=True)
    table = pl.DataFrame(rows, schema=COLUMNS[: len(rows[0])], orient="row")
    for i in range(number_of_files):
        part = table[i::number_of_files]
        if part.height:
            part.write_csv(folder / "interactions" / f"part-{i}.csv")
    items = table["item"].unique().sort()
    pl.DataFrame({"item": items, "title": items}).write_csv(folder / "items.csv")
    data = csv.get_config(str(folder)).data
    data.update(own)
    return data


NAMES = st.sampled_from(["a", "B", "b", "é", "zz", "10", "9", "user with spaces", "ü"])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(
        st.tuples(NAMES, NAMES, st.integers(0, 4), st.sampled_from("éba"), st.integers(0, 2)),
        min_size=1,
        max_size=80,
    ),
    with_events=st.booleans(),
    number_of_files=st.integers(1, 3),
    least=st.integers(1, 4),
    rows_per_part=st.integers(1, 40),
    sample=st.integers(1, 4),
    drop_repeats=st.booleans(),
)
def test_small_cases_equal_one_process(  # noqa: PLR0917
    tmp_path,
    monkeypatch,
    rows,
    with_events,
    number_of_files,
    least,
    rows_per_part,
    sample,
    drop_repeats,
):
    monkeypatch.setattr(interactions, "ROWS_PER_PART", rows_per_part)
    monkeypatch.setattr(builder, "USERS_PER_SHARD", 2)
    monkeypatch.setattr(on_ray, "_SAMPLE", sample)
    monkeypatch.setattr(on_ray, "_CHUNKS_OF_A_TASK", 2)
    monkeypatch.setattr(on_ray, "_TABLES_OF_A_TASK", 2)
    data = small_data(
        tmp_path / "raw",
        rows,
        number_of_files,
        min_user_interactions=least,
        min_item_interactions=least,
        drop_repeats=drop_repeats,
    )
    if with_events:
        data.update(target_events=(rows[0][3],), weight_column="weight")
    found = []
    for name, own in (("one", None), ("two", EagerRay())):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        data.cache_dir = str(tmp_path / name)
        try:
            found.append(files(prepare(data, own).folder))
        except UserError as error:
            found.append(str(error))
    assert found[0] == found[1]


def test_users_and_a_core_before_a_date(ray, tmp_path):
    day = 86_400
    rows = [(f"u{u:02}", f"i{(u * i) % 13}", i * day) for u in range(60) for i in range(3 + u % 9)]
    rows += [(f"u{u:02}", "late", 20 * day) for u in range(60)]
    data = small_data(
        tmp_path / "raw", rows, 3, min_item_interactions=4, core_before="1970-01-06",
        user_fields=("side",),
    )  # fmt: skip
    users = pl.DataFrame({"user": [f"u{u:02}" for u in range(50)], "side": ["l", "r"] * 25})
    users.write_csv(tmp_path / "raw" / "users.csv")
    folder = assert_equal_files(data, tmp_path, ray)[0]
    assert set(np.load(folder / "users" / "profiles.npy").tolist()) == {0, 1, 2}
    items = PreparedData("", folder, {}).item_ids
    data.core_before = ""
    assert set(prepare(data).item_ids) - set(items) == {"late"}


def test_a_user_with_more_rows_than_all_others(ray, tmp_path):
    rows = [("giant", f"i{i % 30}", i) for i in range(900)]
    rows += [(f"u{u:02}", f"i{i}", 7 * u + i) for u in range(40) for i in range(5)]
    data = small_data(tmp_path / "raw", rows, 4, min_user_interactions=3, min_item_interactions=1)
    assert_equal_files(data, tmp_path, ray)


def test_a_worker_that_dies_in_the_middle(ray, tmp_path, monkeypatch):
    """The task is done again by another worker."""
    mark, part = tmp_path / "died", on_ray._part

    def dying(*arguments):
        if not mark.exists():
            mark.write_text("")
            os._exit(1)
        return part(*arguments)

    monkeypatch.setattr(on_ray, "_part", dying)
    rows = [(f"u{u:02}", f"i{(u + i) % 11}", i) for u in range(60) for i in range(5)]
    assert_equal_files(small_data(tmp_path / "raw", rows, 3), tmp_path, ray)
    assert mark.exists()


def test_an_object_store_that_is_too_small_is_told(tmp_path):
    """Ray would wait for room for ever."""
    data = small_data(tmp_path / "raw", [("a", f"i{i}", i) for i in range(9)], 1)
    data.cache_dir = str(tmp_path / "cache")
    with pytest.raises(UserError, match=r"object store of 0 MiB; .* needs 1 MiB.*--object-store-"):
        prepare(data, EagerRay(store=10))


def test_errors_of_files_are_those_of_one_process(ray, tmp_path):
    data = small_data(tmp_path / "raw", [("a", f"i{i}", i) for i in range(9)], 2)
    data.cache_dir = str(tmp_path / "cache")
    path = tmp_path / "raw" / "interactions" / "part-1.csv"
    path.write_text(path.read_text() + "b,,3\n")
    told = []
    for own in (None, ray):
        with pytest.raises(UserError) as raised, own_errors(ray):
            prepare(data, own)
        told.append(str(raised.value))
    assert told[0] == told[1] and "part-1.csv, line 6: column 'item' is empty" in told[0]
    assert not any((tmp_path / "cache" / "datasets").iterdir())


def test_a_folder_of_interactions_is_one_file_cut(tmp_path):
    """Order and names of files do not count; what is no table is told."""
    config = csv.get_config(str(write_csv(tmp_path / "raw")))
    config.data.cache_dir = str(tmp_path / "one")
    expected = files(prepare(config.data).folder / builder.USERS)
    folder = tmp_path / "many"
    (folder / "interactions.parquet").mkdir(parents=True)
    shutil.copy(tmp_path / "raw" / "items.csv", folder)
    table = pl.read_csv(tmp_path / "raw" / "interactions.csv")
    for i in range(3):
        table[i::3].write_parquet(folder / "interactions.parquet" / f"part-{9 - i}.parquet")
    (folder / "interactions.parquet" / "_SUCCESS").write_text("")
    data = csv.get_config(str(folder)).data
    data.cache_dir = str(tmp_path / "two")
    assert files(prepare(data).folder / builder.USERS) == expected
    table[:0].write_parquet(folder / "interactions.parquet" / "part-0.parquet")
    data.cache_dir = str(tmp_path / "three")
    assert files(prepare(data).folder / builder.USERS) == expected
    (folder / "interactions.parquet" / "date=1").mkdir()
    with pytest.raises(UserError, match="has a folder, date=1"):
        prepare(data)
    (folder / "interactions.parquet" / "date=1").rmdir()
    (folder / "interactions.parquet" / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"notes\.txt: files of interactions end in"):
        prepare(data)


def test_a_bucket_gets_what_a_cluster_prepares(ray, tmp_path, monkeypatch):
    """Workers send what they made: nothing but the raw files is on a disk that they share."""
    data = csv.get_config(str(write_csv(tmp_path / "raw"))).data
    data.cache_dir = str(tmp_path / "one")
    expected = prepare(data).folder
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    buckets.stand_in(monkeypatch, tmp_path / "bucket")
    data.cache_dir = "gs://b/cache"
    copied = tmp_path / "bucket" / "cache" / "datasets" / prepare(data, ray).folder.name
    assert files(copied) == files(expected)


def test_the_command_starts_and_ends_ray(tmp_path):
    raw, found = write_csv(tmp_path / "raw"), []
    for name, flags in (("one", ()), ("two", ("--engine=ray", "--features"))):
        command = [sys.executable, "-m", "tssr_jax.main", "prepare", f"--config=csv:{raw}", *flags]
        command += [f"--config.data.cache_dir={tmp_path / name}"]
        command += ["--config.content.text.encoder=ngrams"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.append(files(done.stdout.splitlines()[-1]))
    assert found[0] == found[1]
    assert any((tmp_path / "two").rglob("*co_occurrence*"))  # memories were counted
