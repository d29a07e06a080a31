"""Preparing once, finding it again, and never mixing."""

import json
from pathlib import Path

import pytest

from configs import csv
from data_pipeline import builder
from data_pipeline.prepare import prepare
from tests.raw_data import write_csv
from tssr_jax.errors import UserError


@pytest.fixture(name="data")
def fixture_data(tmp_path):
    config = csv.get_config(str(write_csv(tmp_path / "raw")))
    config.data.cache_dir = str(tmp_path / "cache")
    return config.data


def folders(data):
    return sorted(p.name for p in (Path(data.cache_dir) / "datasets").iterdir())


def test_what_was_prepared_equals_the_raw_files(data):
    prepared = prepare(data)
    assert prepared.num_users == 40 and prepared.num_items == 20
    lines = (Path(data.raw_dir) / "interactions.csv").read_text().splitlines()[1:]
    times = {}
    for user, item, time in (line.split(",") for line in lines):
        times.setdefault(user, []).append((int(time), item))
    items, offsets = (tensor.numpy() for tensor in builder.read_sequences(prepared.folder))
    for index, user in enumerate(prepared.user_ids):
        own = items[offsets[index] : offsets[index + 1]]
        assert [prepared.item_ids[i - 1] for i in own] == [item for _, item in sorted(times[user])]
    titles = dict(
        line.split(",") for line in (Path(data.raw_dir) / "items.csv").read_text().splitlines()[1:]
    )
    assert dict(zip(prepared.item_ids, prepared.titles, strict=True)) == titles


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
