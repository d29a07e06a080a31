"""Pictures: decoded as torchvision does it, once; what is broken or missing is counted."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.support.raw_data import write_images
from tssr_jax.content import pictures as module
from tssr_jax.content.pictures import decoded_images
from tssr_jax.data_pipeline import records
from tssr_jax.errors import UserError

FOLDER = Path(__file__).parents[2] / "image_reference"


def decode(names, folder, tmp_path):
    return decoded_images(names, str(folder), str(tmp_path / "cache"))


def test_decoded_as_torchvision_does_it(tmp_path):
    """Resize(256), CenterCrop(224) of tests/image_reference/make.py."""
    store = decode(["picture.jpg"], FOLDER, tmp_path)
    assert store.shape == (224, 224, 3) and store.dtype == np.uint8
    expected = np.load(FOLDER / "reference.npz")["cropped"]
    np.testing.assert_array_equal(store(np.array([1]))[0, ::7, ::7], expected)


def test_other_modes_become_rgb(tmp_path):
    grey = np.full((40, 40), 77, np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([grey] * 4)).save(tmp_path / "alpha.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.gif")
    Image.fromarray(np.dstack([grey] * 3)).convert("CMYK").save(tmp_path / "cmyk.jpg")
    names = ["grey.png", "alpha.png", "palette.gif", "cmyk.jpg"]
    pixels = decode(names, tmp_path, tmp_path)(np.arange(1, 5))
    assert pixels.shape == (4, 224, 224, 3) and np.abs(pixels.astype(int) - 77).max() <= 2


def test_what_can_not_be_read_is_counted_and_noted(tmp_path, capsys):
    write_images(tmp_path, ["a.png", "sub/b.png"])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    Image.new("RGB", (1, 1000)).save(tmp_path / "line.png")
    names = [
        "a.png", "", "text.jpg", "none.jpg", "sub/b.png", "https://host/c.jpg", "empty.jpg",
        "cut.png", "line.png", "sub",
    ]  # fmt: skip
    store = decode(names, tmp_path, tmp_path)
    assert store.rows.tolist() == [-1, 0, -1, -1, -1, 1, -1, -1, -1, -1, -1]
    assert store.items.tolist() == [1, 5]
    assert store.counts == {
        "images": 2, "images_missing": 3, "images_broken": 4, "items_without_image": 1
    }  # fmt: skip
    assert sum(store.counts.values()) == len(names)
    notes = (store.folder / "notes.txt").read_text().splitlines()
    assert [line.split(",")[0] for line in notes] == [f"item {i}" for i in (3, 4, 6, 7, 8, 9, 10)]
    assert "it is a URL" in notes[2] and "there is no such file" in notes[1]
    assert "2 pictures were read; 3 are missing and 4 are broken" in capsys.readouterr().out


def test_decoded_once_until_a_file_changes(tmp_path, monkeypatch):
    write_images(tmp_path, ["a.png", "b.png"])
    first = decode(["a.png", "b.png"], tmp_path, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_decode", lambda *_: pytest.fail("decoded again"))
        again = decode(["a.png", "b.png"], tmp_path, tmp_path)
    np.testing.assert_array_equal(again(np.array([2, 1])), first(np.array([2, 1])))
    write_images(tmp_path, ["b.png"], seed=1)
    changed = decode(["a.png", "b.png"], tmp_path, tmp_path)
    assert changed.folder != first.folder
    np.testing.assert_array_equal(changed(np.array([1])), first(np.array([1])))
    assert (changed(np.array([2])) != first(np.array([2]))).any()


class _Backwards:
    """An engine that is done with the last block first."""

    def map(self, make, blocks):
        function = make()
        yield from reversed([(number, function(block)) for number, block in enumerate(blocks)])


def test_blocks_may_be_done_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_OF_A_BLOCK", 2)
    names = [f"{i}.png" for i in range(5)]
    write_images(tmp_path, names)
    names.insert(2, "none.png")
    expected = decode(names, tmp_path, tmp_path)
    other = str(tmp_path / "other")
    store = decoded_images(names, str(tmp_path), other, _Backwards())
    np.testing.assert_array_equal(store.rows, expected.rows)
    assert store.counts == expected.counts
    np.testing.assert_array_equal(store(store.items), expected(expected.items))
    assert (store.folder / "notes.txt").read_text() == (expected.folder / "notes.txt").read_text()


class _Elsewhere:
    """An engine whose workers have no raw files."""

    def map(self, make, blocks):
        del make
        elsewhere = module._BlockDecoder("/nowhere")
        yield from ((number, elsewhere(block)) for number, block in enumerate(blocks))


def test_a_worker_without_the_raw_files_is_told(tmp_path):
    write_images(tmp_path, ["a.png"])
    with pytest.raises(UserError, match="All machines need the raw files under one path"):
        decoded_images(["a.png"], str(tmp_path), str(tmp_path / "cache"), _Elsewhere())
    assert not list((tmp_path / "cache").glob("images/*"))


def test_no_picture_at_all(tmp_path):
    for names in (["none.jpg", ""], [""]):
        with pytest.raises(UserError, match=r"None of the \d items has a picture that can be read"):
            decode(names, tmp_path, tmp_path)
    assert not list((tmp_path / "cache").glob("images/*"))


def test_an_error_of_the_machine_is_no_broken_picture(tmp_path, monkeypatch):
    write_images(tmp_path, ["a.png", "b.png"])
    opened = Image.open

    def too_many(file):
        if "b.png" in file.name:
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(file)

    monkeypatch.setattr(Image, "open", too_many)
    with pytest.raises(OSError, match="Too many open files"):
        decode(["a.png", "b.png"], tmp_path, tmp_path)
    assert not list((tmp_path / "cache").glob("images/*"))


def test_tensorflow_datasets_reads_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr("tssr_jax.content.array_store._BYTES_PER_SHARD", 2 * 224 * 224 * 3)
    write_images(tmp_path, [f"{i}.png" for i in range(5)])
    store = decode(["", *(f"{i}.png" for i in range(5))], tmp_path, tmp_path)
    builder = tfds.builder_from_directory(store.folder / "arrays" / records.VERSION)
    assert builder.info.splits["rows"].num_shards == 3
    rows = list(builder.as_dataset(split="rows").as_numpy_iterator())
    assert sorted(int(row["item"]) for row in rows) == [2, 3, 4, 5, 6]
    for row in rows:
        np.testing.assert_array_equal(row["array"], store(np.array([row["item"]]))[0])
    assert json.loads((store.folder / "report.json").read_text())["shape"] == [224, 224, 3]
