"""Reads tensors from safetensors, or from a PyTorch state dict without running its code.

A PyTorch file is a pickle, and a pickle is a program. The unpickler here knows only the names that
a state dict of tensors needs, and refuses all others. It reads both layouts: the zip archive (torch
1.6 and later), and the older sequence of pickles. The sizes that a file names are compared with its
own size before memory is allocated.
"""

import collections
import io
import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tssr_jax.errors import UserError, shown

_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip


# Tensors may share storages (tied weights), but not beyond this many times the file's size.
_MOST_SHARED = 4


class _StorageKind(NamedTuple):
    dtype: Any


class _Storage(NamedTuple):
    key: str
    dtype: Any
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load_tensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors by name.

    Args:
      path: a .safetensors file, or one that `torch.save(model.state_dict(), path)` wrote (its
        tensors may be below the key "state_dict").

    Raises:
      UserError: if the file can't be read, or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            return _load_zip(path)
        with path.open("rb") as file:
            return _load_legacy(file, path.stat().st_size)
    except SafetensorError as error:
        raise UserError(f"{path} can't be read as safetensors ({shown(error)}).") from error
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror or error}).") from error
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        # A damaged pickle can raise anything; nothing of it has been run.
        raise UserError(
            f"{path} is not a PyTorch state dict that can be read safely "
            f"({shown(error) or type(error).__name__}). Save the weights with "
            "torch.save(model.state_dict(), path), or as .safetensors."
        ) from error


class _Unpickler(pickle._Unpickler):
    """Knows tensors, storages and dictionaries; refuses every other name.

    (Written in Python: the one in C allocates memory for an index that a file only names.)
    """

    def find_class(self, module: str, name: str) -> Any:
        """See pickle.Unpickler."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module == "torch" and name in _STORAGES:
            return _StorageKind(_STORAGES[name])
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not part of a tensor")

    def persistent_load(self, pid: Any) -> _Storage:
        """See pickle.Unpickler: ("storage", kind, key, device, number of elements, ...)."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError(f"it refers to {str(pid)[:50]!r}, which is no storage")
        _, kind, key, _, size = pid[:5]
        if not isinstance(kind, _StorageKind):
            raise pickle.UnpicklingError("a storage has no known type")
        return _Storage(str(key), kind.dtype, int(size))


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    return tensor


def _load_zip(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist():
            order = archive.read(f"{folder}byteorder").decode()
            if order != "little":
                raise ValueError(f"its numbers are {order} endian")
        size = path.stat().st_size
        # torch.save does not compress: members are not larger than the file.
        if sum(member.file_size for member in archive.infolist()) > size:
            raise ValueError("its parts are larger than the file itself")
        tensors = _tensors(_Unpickler(io.BytesIO(archive.read(pickled))).load())
        keys = {tensor.storage.key for tensor in tensors.values()}
        data = {key: archive.read(f"{folder}data/{key}") for key in keys}
        return _values(tensors, data, size)


def _load_legacy(file: BinaryIO, file_size: int) -> dict[str, np.ndarray]:
    magic, protocol = _Unpickler(file).load(), _Unpickler(file).load()
    if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise ValueError("it does not begin as one")
    _Unpickler(file).load()  # the machine that wrote it
    tensors = _tensors(_Unpickler(file).load())
    itemsize = {t.storage.key: np.dtype(t.storage.dtype).itemsize for t in tensors.values()}
    data = {}
    for key in _Unpickler(file).load():
        (size,) = struct.unpack("<q", file.read(8))
        length = size * itemsize[str(key)]
        if not 0 <= length <= file_size - file.tell():
            raise ValueError("a storage is larger than the rest of the file")
        data[str(key)] = file.read(length)
    return _values(tensors, data, file_size)


def _tensors(value: Any) -> dict[str, _Tensor]:
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not a dictionary")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise ValueError(f"its entry {str(name)[:50]!r} is not a tensor")
    return value


def _values(
    tensors: dict[str, _Tensor], data: dict[str, bytes], file_size: int
) -> dict[str, np.ndarray]:
    total = sum(
        math.prod(tensor.shape) * np.dtype(tensor.storage.dtype).itemsize
        for tensor in tensors.values()
    )
    if total > _MOST_SHARED * file_size:
        raise ValueError(f"its tensors have {total:,} bytes, the file only {file_size:,}")
    return {name: _value(tensor, data[tensor.storage.key]) for name, tensor in tensors.items()}


def _value(tensor: _Tensor, data: bytes) -> np.ndarray:
    flat = np.frombuffer(data, tensor.storage.dtype)
    if flat.size != tensor.storage.size:
        raise ValueError(f"a storage has {flat.size} elements instead of {tensor.storage.size}")
    steps = [(n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True)]
    empty = 0 in tensor.shape
    if min([tensor.offset, *tensor.strides, *tensor.shape]) < 0 or (
        not empty and tensor.offset + sum(steps) >= flat.size
    ):
        raise ValueError("a tensor reaches beyond its storage")
    size = flat.dtype.itemsize
    strides = [step * size for step in tensor.strides]
    view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides)
    return np.array(view)
