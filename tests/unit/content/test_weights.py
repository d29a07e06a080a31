"""PyTorch's files: read without PyTorch, and never run."""

import pickle
import shutil
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tssr_jax.content.weights import load_tensors
from tssr_jax.errors import UserError

FILES = Path(__file__).parents[2] / "image_reference"
RAN = []


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_a_state_dict_as_torch_save_writes_it(layout):
    """What is in it: tests/image_reference/make.py."""
    tensors = load_tensors(FILES / f"{layout}.pth")
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = {
        "float": base, "transposed": base.T, "part": base[1:, 2:], "half": base.astype(np.float16),
        "bfloat16": base, "count": np.array(7), "empty": np.zeros((0, 3)), "parameter": base[0],
    }  # fmt: skip
    assert tensors.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(tensors[name].astype(values.dtype), values, err_msg=name)
    assert tensors["half"].dtype == np.float16 and tensors["count"].dtype == np.int64


class Evil:
    """Runs code when a careless unpickler meets it."""

    def __reduce__(self):
        return RAN.append, (1,)


def archive(path, pickled, **storages):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        for name, data in storages.items():
            file.writestr(f"archive/data/{name}", data)


def legacy(pickled):
    parts = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {})]
    return b"".join(parts) + pickled


@pytest.mark.parametrize(
    "value", [Evil(), {"weight": Evil()}, {"weight": 3}, [1, 2]], ids=["a", "b", "c", "d"]
)
def test_anything_but_tensors_is_refused_and_not_run(tmp_path, value):
    path = tmp_path / "weights.pth"
    archive(path, pickle.dumps(value, 2))
    with pytest.raises(UserError, match="not a PyTorch state dict that can be read safely"):
        load_tensors(path)
    path.write_bytes(legacy(pickle.dumps(value, 2)))
    with pytest.raises(UserError, match="not a PyTorch state dict that can be read safely"):
        load_tensors(path)
    assert not RAN


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "numpy.load"])
def test_other_names_are_named(tmp_path, name):
    module, _, function = name.rpartition(".")
    path = tmp_path / "weights.pth"
    archive(path, f"c{module}\n{function}\n.".encode())
    with pytest.raises(UserError, match=f"asks for {name}"):
        load_tensors(path)


def test_a_tensor_may_not_reach_beyond_its_storage(tmp_path):
    with zipfile.ZipFile(FILES / "zip.pth") as file:
        names = [n for n in file.namelist() if "/data/" in n]
        contents = {n: file.read(n) for n in file.namelist()}
    contents[names[0]] = contents[names[0]][:-4]
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in contents.items():
            file.writestr(name, data)
    with pytest.raises(UserError, match="has 11 elements instead of 12"):
        load_tensors(path)


def pickled_view(offset, size, stride):
    """A state dict with one vector of a storage of 12 elements."""
    numbers = [b"J" + struct.pack("<i", number) for number in (offset, size, stride)]
    return (
        b"\x80\x02}X\x01\x00\x00\x00a"
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x0ctQ%b%b\x85%b\x85\x89NtRs." % tuple(numbers)
    )


def test_views_of_a_storage(tmp_path):
    path, twelve = tmp_path / "weights.pth", struct.pack("<12f", *range(12))
    archive(path, pickled_view(8, 4, 1), **{"0": twelve})
    np.testing.assert_array_equal(load_tensors(path)["a"], [8, 9, 10, 11])
    archive(path, pickled_view(9, 4, 1), **{"0": twelve})
    with pytest.raises(UserError, match="beyond its storage"):
        load_tensors(path)
    archive(path, pickled_view(0, 2_000_000_000, 0), **{"0": twelve})
    with pytest.raises(UserError, match="its tensors have 8,000,000,000 bytes, the file only"):
        load_tensors(path)


def test_sizes_are_checked_against_the_file_s(tmp_path):
    """A zip bomb, and a storage that says it is larger than the file."""
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickled_view(0, 12, 1))
        file.writestr("archive/data/0", bytes(10_000_000))
    with pytest.raises(UserError, match="its parts are larger than the file itself"):
        load_tensors(path)
    storage = pickle.dumps(["0"], 2) + struct.pack("<q", 10**15)
    path.write_bytes(legacy(pickled_view(0, 12, 1) + storage))
    with pytest.raises(UserError, match="a storage is larger than the rest of the file"):
        load_tensors(path)


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_cut_files(tmp_path, name):
    whole = (FILES / name).read_bytes()
    path = tmp_path / name
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError):
            load_tensors(path)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_tensors(tmp_path / "none.pth")
    shutil.copy(FILES / "zip.pth", tmp_path / "named_wrongly.safetensors")
    with pytest.raises(UserError, match="as safetensors"):
        load_tensors(tmp_path / "named_wrongly.safetensors")


def test_an_index_that_a_file_only_names_takes_no_memory(tmp_path):
    """LONG_BINPUT: what was read is to be remembered under the number 2^28 - 1."""
    path = tmp_path / "weights.pth"
    archive(path, b"\x80\x02}r\xff\xff\xff\x0f.")
    tracemalloc.start()
    assert not load_tensors(path)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
