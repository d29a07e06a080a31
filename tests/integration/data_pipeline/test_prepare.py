"""Preparing once, finding it again, and never mixing."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from configs import csv
from tests.support import buckets
from tests.support.raw_data import write_csv
from tests.support.runs import run_command
from tssr_jax.data_pipeline import builder, cache, records
from tssr_jax.data_pipeline import prepare as prepare_module
from tssr_jax.data_pipeline.prepare import prepare
from tssr_jax.errors import UserError


@pytest.fixture(name="data")
def fixture_data(tmp_path):
    config = csv.get_config(str(write_csv(tmp_path / "raw")))
    config.data.cache_dir = str(tmp_path / "cache")
    return config.data


@pytest.fixture(name="bucket")
def fixture_bucket(data, tmp_path, monkeypatch):
    """A folder that stands for the bucket of the cache."""
    bucket = tmp_path / "bucket"
    buckets.stand_in(monkeypatch, bucket)
    data.cache_dir = "gs://b/cache"
    return bucket


def folders(data):
    return sorted(p.name for p in (Path(data.cache_dir) / "datasets").iterdir())


def test_what_was_prepared_equals_the_raw_files(data):
    prepared = prepare(data)
    assert prepared.num_users == 40 and prepared.num_items == 20
    lines = (Path(data.raw_dir) / "interactions.csv").read_text().splitlines()[1:]
    times = {}
    for user, item, time in (line.split(",") for line in lines):
        times.setdefault(user, []).append((int(time), item))
    *tensors, more = builder.read_sequences(prepared.folder)
    items, minutes, offsets = (tensor.numpy() for tensor in tensors)
    assert not more
    for index, user in enumerate(prepared.user_ids):
        own = slice(offsets[index], offsets[index + 1])
        ordered = sorted(times[user])
        assert [prepared.item_ids[i - 1] for i in items[own]] == [item for _, item in ordered]
        assert minutes[own].tolist() == [time // 60 for time, _ in ordered]
    titles = dict(
        line.split(",") for line in (Path(data.raw_dir) / "items.csv").read_text().splitlines()[1:]
    )
    assert dict(zip(prepared.item_ids, prepared.titles, strict=True)) == titles


def test_milliseconds_are_told(data):
    path = Path(data.raw_dir) / "interactions.csv"
    path.write_text(path.read_text().replace(",1000\n", ",1700000000000\n", 1))
    with pytest.raises(
        UserError, match=r"has the time 1700000000000 of user .* probably milliseconds"
    ):
        prepare(data)
    assert folders(data) == []


def test_prepared_once_then_reused(data, monkeypatch):
    first = prepare(data)
    monkeypatch.setattr(builder, "write", lambda *_: pytest.fail("prepared again"))
    second = prepare(data)
    assert second.key == first.key and second.report == first.report
    assert second.titles == first.titles


def test_another_setting_or_another_file_is_another_data_set(data):
    first = prepare(data)
    data.tie_seed = 1
    assert prepare(data).key != first.key
    data.tie_seed = 0
    path = Path(data.raw_dir) / "interactions.csv"
    path.write_text(path.read_text() + "u0,i0,5\n")
    assert prepare(data).report["interactions_read"] == first.report["interactions_read"] + 1
    assert len(folders(data)) == 3


def test_the_same_files_elsewhere_are_the_same_data_set(data, tmp_path):
    first = prepare(data)
    Path(data.raw_dir).rename(tmp_path / "moved")
    data.raw_dir = str(tmp_path / "moved")
    assert prepare(data).key == first.key


def test_items_without_text_or_row_are_kept_and_counted(data):
    path = Path(data.raw_dir) / "items.csv"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("i3,")]
    lines = ["i4," if line.startswith("i4,") else line for line in lines] + ["unseen,Thing"]
    path.write_text("\n".join(lines) + "\n")
    prepared = prepare(data)
    assert prepared.num_items == 20
    assert prepared.report["items_without_a_row_in_the_item_file"] == 1
    assert prepared.report["items_without_text"] == 2
    assert prepared.report["item_rows_without_interactions"] == 1
    assert prepared.texts[prepared.item_ids.index("i3")] == ""


def test_a_failure_leaves_nothing_behind(data, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(builder, "write", fail)
    with pytest.raises(OSError, match="No space"):
        prepare(data)
    assert folders(data) == []


def test_report_is_kept_beside_the_data(data):
    prepared = prepare(data)
    (folder,) = (Path(data.cache_dir) / "datasets").iterdir()
    assert json.loads((folder / "report.json").read_text()) == prepared.report


def test_unknown_source(data):
    data.source = "netflix"
    with pytest.raises(UserError, match="'netflix'; known sources: amazon, csv, hm, mind, ml100k"):
        prepare(data)


def test_a_bucket_shares_what_one_host_has_prepared(data, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "first_host"))
    first = prepare(data)
    assert (bucket / "cache" / "datasets" / first.folder.name / "report.json").is_file()
    monkeypatch.setenv("HOME", str(tmp_path / "second_host"))
    monkeypatch.setattr(builder, "write", lambda *_: pytest.fail("prepared again"))
    second = prepare(data)
    assert second.folder != first.folder and second.report == first.report
    assert second.texts == first.texts and second.user_ids == first.user_ids
    assert not list(bucket.rglob("*incomplete*"))


def test_a_part_of_a_data_set_in_a_bucket_is_not_taken_for_it(data, bucket, tmp_path, monkeypatch):
    """Whoever shared it was stopped in the middle."""
    monkeypatch.setenv("HOME", str(tmp_path / "first_host"))
    copy_tree = cache.copy_tree
    copied = []

    def stop_early(source, target):
        if len(copied) == 3:
            raise KeyboardInterrupt
        copied.append(target)
        copy_tree(source, target)

    monkeypatch.setattr(cache, "copy_tree", stop_early)
    with pytest.raises(KeyboardInterrupt):
        prepare(data)
    monkeypatch.setattr(cache, "copy_tree", copy_tree)
    assert list((bucket / "cache" / "datasets").iterdir())
    monkeypatch.setenv("HOME", str(tmp_path / "second_host"))
    second = prepare(data)
    assert len(second.user_ids) == second.num_users
    assert (bucket / "cache" / "datasets" / f"{second.folder.name}.whole").is_file()
    monkeypatch.setenv("HOME", str(tmp_path / "third_host"))
    monkeypatch.setattr(builder, "write", lambda *_: pytest.fail("prepared again"))
    assert prepare(data).report == second.report


def test_what_a_killed_process_left_is_no_obstacle(data, monkeypatch):
    """A process in a container has the number of the one before it."""
    monkeypatch.setattr(os, "getpid", lambda: 1)

    def kill(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(prepare_module, "collect", kill)
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)  # nothing is cleaned up
        with pytest.raises(KeyboardInterrupt):
            prepare(data)
    assert len(folders(data)) == 1
    prepare(data)


@pytest.mark.usefixtures("drawn")
def test_the_report_has_a_picture_and_its_counts_add_up(data):
    prepared = prepare(data)
    picture = prepared.folder / "report.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5000
    report = prepared.report
    assert report["users"] * report["mean_length"] == report["interactions_kept"]
    assert report["share_of_items_with_text"] == 1 and report["share_of_items_with_image"] == 0


def test_preparing_without_training(data, tmp_path):
    command = [
        sys.executable, "-m", "data_pipeline.prepare",
        f"--config=configs/csv.py:{data.raw_dir}", f"--config.data.cache_dir={data.cache_dir}",
    ]  # fmt: skip
    first = run_command(command)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("Preparing csv") and len(first.stdout.splitlines()) <= 10
    second = run_command([*command, "--verbose"])
    assert "interactions read" in second.stdout and "Preparing" not in second.stdout
    folder = first.stdout.splitlines()[-1]
    assert folder == second.stdout.splitlines()[-1] and Path(folder, "report.json").is_file()
    failed = run_command([*command, "--config.data.text_fields=('colour',)"])
    assert failed.returncode == 1 and "no column 'colour'" in failed.stderr
    assert failed.stderr.startswith("Error: ") and "Traceback" not in failed.stderr
    failed = run_command(command[:3])
    assert failed.returncode == 1 and "--config" in failed.stderr


def test_a_full_disk_is_an_error_that_names_the_place(data, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare_module, "collect", lambda *_, **__: fail())
    with pytest.raises(
        OSError, match=r"No space left on device: '.*datasets/csv-\w+-2.0.0.incomplete"
    ):
        prepare(data)
    assert folders(data) == []


def test_tensorflow_datasets_reads_what_was_prepared(data):
    prepared = prepare(data)
    users = tfds.builder_from_directory(prepared.folder / "users" / records.VERSION)
    assert users.info.splits["rows"].num_examples == 40
    *tensors, more = builder.read_sequences(prepared.folder)
    items, minutes, offsets = (tensor.numpy() for tensor in tensors)
    assert not more
    for index, example in enumerate(users.as_dataset(split="rows").as_numpy_iterator()):
        assert example["user_id"].decode() == prepared.user_ids[index]
        own = slice(offsets[index], offsets[index + 1])
        np.testing.assert_array_equal(example["items"], items[own])
        np.testing.assert_array_equal(example["times"] // 60, minutes[own])
    described = tfds.builder_from_directory(prepared.folder / "items" / records.VERSION)
    texts = [row["text"].decode() for row in described.as_dataset(split="rows").as_numpy_iterator()]
    assert texts == prepared.texts


def test_a_text_that_can_not_be_read_is_told(data):
    items = prepare(data).folder / "items"
    with pytest.raises(OSError, match="record 0 has no colour that can be read"):
        records.texts(items, "colour")
    (shard,) = records.shards(items)
    content = bytearray(shard.read_bytes())
    content[12:14] = b"\xff\xff"  # the first example comes after a length and its checksum
    shard.write_bytes(content)
    with pytest.raises(OSError, match="record 0 has no title that can be read"):
        records.texts(items, "title")
