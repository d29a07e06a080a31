"""The cache: damaged files and folders are found, told, and made again."""

import os
import time

import numpy as np
import pytest

from tssr_jax.data_pipeline import cache, digests

ARRAY = np.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes().replace(b"(3, 4)", b"(4, 3)")),
        lambda path: np.save(path, np.full((3, 4), np.nan)),
    ],
    ids=["cut", "empty", "another shape", "written by another program"],
)
def test_damaged_arrays_are_made_again(tmp_path, damage, capsys):
    cache.save_array(str(tmp_path), "features/a.npy", ARRAY)
    np.testing.assert_array_equal(cache.find_array(str(tmp_path), "features/a.npy"), ARRAY)
    np.testing.assert_array_equal(np.load(tmp_path / "features" / "a.npy"), ARRAY)
    damage(tmp_path / "features" / "a.npy")
    assert cache.find_array(str(tmp_path), "features/a.npy") is None
    assert "a.npy is damaged" in capsys.readouterr().out
    assert not list((tmp_path / "features").iterdir())
    cache.save_array(str(tmp_path), "features/a.npy", ARRAY)
    np.testing.assert_array_equal(cache.find_array(str(tmp_path), "features/a.npy"), ARRAY)


def make_folder(folder):
    (folder / "below").mkdir(parents=True)
    (folder / "a.json").write_text("{}")
    (folder / "below" / "b.tfrecord-0").write_bytes(b"records")
    digests.write(folder)
    return folder


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "a.json").write_text("[]"), "a.json has changed"),
        (lambda f: (f / "a.json").unlink(), "a.json is missing"),
        (lambda f: (f / "below" / "b.tfrecord-0").write_bytes(b"record"), "b.tfrecord-0 has"),
        (lambda f: (f / digests.FILE).write_text("{"), "digests.json is not readable"),
        (lambda f: (f / digests.FILE).write_text("[]"), "digests.json is not readable"),
        (lambda f: (f / digests.FILE).write_text("[" * 100_000), "digests.json is not readable"),
        (lambda f: (f / digests.FILE).write_text("{}"), "a.json does not belong there"),
        (lambda f: (f / digests.FILE).unlink(), "digests.json is missing"),
        (lambda f: (f / "below" / "c.tfrecord-1").write_bytes(b""), "c.tfrecord-1 does not belong"),
    ],
)
def test_damaged_folders_are_removed(tmp_path, damage, reason, capsys):
    folder = make_folder(tmp_path / "data" / "x")
    assert cache.find_folder(str(tmp_path), "data/x") == folder
    damage(folder)
    assert cache.find_folder(str(tmp_path), "data/x") is None
    assert reason in capsys.readouterr().out and not list((tmp_path / "data").iterdir())


def test_hidden_files_of_the_system_are_no_damage(tmp_path):
    folder = make_folder(tmp_path / "x")
    (folder / "below" / ".DS_Store").write_text("")
    assert cache.find_folder(str(tmp_path), "x") == folder


def test_records_are_known_wherever_they_lie(tmp_path):
    first, second = (make_folder(tmp_path / name) for name in "xy")
    (second / "a.json").write_text("something else")
    digests.write(second)
    assert digests.of_records(first) == digests.of_records(second)
    (second / "below" / "b.tfrecord-0").write_bytes(b"others")
    digests.write(second)
    assert digests.of_records(first) != digests.of_records(second)


def test_leftovers_of_killed_processes_are_removed_after_a_day(tmp_path):
    for age, name in ((0, "new"), (90_000, "old")):
        folder = tmp_path / "datasets" / f"x.incomplete-{name}"
        (folder / "below").mkdir(parents=True)
        file = tmp_path / "features" / f"a.npy.incomplete-{name}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"")
        for path in (folder, file):
            os.utime(path, (time.time() - age,) * 2)
    make_folder(tmp_path / "datasets" / "whole")
    os.utime(tmp_path / "datasets" / "whole", (0, 0))
    cache.remove_leftovers(str(tmp_path))
    assert {path.name for path in tmp_path.glob("*/*")} == {
        "x.incomplete-new",
        "a.npy.incomplete-new",
        "whole",
    }
