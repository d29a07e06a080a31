"""Pictures of a catalogue, decoded once into uint8 arrays of one shape.

A picture is resized so that its shorter side has 256 pixels (Pillow's bilinear filter, as
torchvision resizes pictures) and cropped at the centre. Pictures that can't be read are counted,
noted with the reason, and treated as absent.
"""

import errno
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image
from rich.progress import track

from tssr_jax.content import array_store
from tssr_jax.content.array_store import ArrayStore
from tssr_jax.content.resnet import CROP, RESIZE
from tssr_jax.engine import IN_PROCESS, Engine, seen_by_all
from tssr_jax.errors import UserError, shown

_VERSION = 1
# Errors of a file that is no picture, or a damaged one. Pillow's OSErrors of this kind have no
# errno; an OSError with an errno comes from the machine.
_NO_PICTURE = (SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
_MOST_OBLONG = 64
_THREADS = min(16, 2 * (os.cpu_count() or 1))
# Pictures of a block: 10 MB of pixels.
_OF_A_BLOCK = 64
# Fewer blocks take no time worth a progress bar.
_FEW = 4


class _Decoded(NamedTuple):
    pixels: np.ndarray | None
    missing: bool = False
    reason: str = ""


def decoded_images(
    images: Sequence[str], raw_dir: str, cache_dir: str, engine: Engine = IN_PROCESS
) -> ArrayStore:
    """The decoded pictures of a catalogue, from the cache or new.

    Args:
      images: path of the picture of item i + 1 at index i, below `raw_dir`; "" without one. URLs
        are not fetched; they count as missing.
      raw_dir: folder (or bucket) of the raw files.
      cache_dir: where the store is kept.
      engine: decodes the pictures.

    Returns:
      A store of uint8 [224, 224, 3], RGB.

    Raises:
      UserError: if no picture can be read, or a worker does not find one that this machine finds.
    """
    root = epath.Path(raw_dir).expanduser()
    key = _key(images, root)
    store = array_store.find(cache_dir, key)
    if store is not None:
        return store
    counts, notes = Counter[str](images=0, images_missing=0, images_broken=0), list[str]()
    pictures = _readable(images, root, engine, counts, notes)
    first = next(pictures, None)
    if first is None:
        raise UserError(
            f"None of the {len(images):,} items has a picture that can be read "
            f"({len(notes):,} are named, the first: {notes[0] if notes else 'none'}). Their paths "
            f"lie below --config.data.raw_dir ({raw_dir or 'not given'}); "
            "--config.content.modalities=\"('text',)\" does without pictures."
        )

    def arrays() -> Iterator[tuple[int, np.ndarray]]:
        yield first
        yield from pictures

    store = array_store.write(cache_dir, key, arrays(), len(images) + 1, counts=counts, notes=notes)
    if notes:
        print(
            f"{counts['images']:,} pictures were read; {counts['images_missing']:,} are missing "
            f"and {counts['images_broken']:,} are broken: {store.folder}/notes.txt lists them."
        )
    return store


def _readable(
    images: Sequence[str],
    root: epath.Path,
    engine: Engine,
    counts: Counter[str],
    notes: list[str],
) -> Iterator[tuple[int, np.ndarray]]:
    """(item, pixels) of the pictures that can be read; counts and notes the others."""
    named = [(i + 1, name) for i, name in enumerate(images) if name]
    counts["items_without_image"] = len(images) - len(named)
    for (item, name), result in zip(named, _decoded(named, root, engine), strict=True):
        if result.pixels is not None:
            counts["images"] += 1
            yield item, result.pixels
            continue
        if result.missing and "://" not in name and (root / name).is_file():
            raise UserError(
                f"A worker does not find the picture {root / name}, which this machine finds. All "
                "machines need the raw files under one path (--config.data.raw_dir)."
            )
        counts["images_missing" if result.missing else "images_broken"] += 1
        notes.append(f"item {item}, {name}: {result.reason}")


def _decoded(
    named: Sequence[tuple[int, str]], root: epath.Path, engine: Engine
) -> Iterator[_Decoded]:
    """The results of these items' pictures, in order."""
    names = [name for _, name in named]
    blocks = [names[i : i + _OF_A_BLOCK] for i in range(0, len(names), _OF_A_BLOCK)]
    done = engine.map(functools.partial(_BlockDecoder, seen_by_all(str(root))), blocks)
    early: dict[int, list[_Decoded]] = {}  # blocks that came before those in front of them
    following = 0
    for number, results in track(done, "Decoding images", len(blocks), disable=len(blocks) < _FEW):
        early[number] = results
        while following in early:
            yield from early.pop(following)
            following += 1


class _BlockDecoder:
    """A worker: decodes pictures by name, several at a time."""

    def __init__(self, root: str):
        self._root = epath.Path(root)

    def __call__(self, names: Sequence[str]) -> list[_Decoded]:
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(functools.partial(_decode, self._root), names))


def _decode(root: epath.Path, name: str) -> _Decoded:
    if "://" in name:
        return _Decoded(None, True, "it is a URL; download it and name the file instead")
    try:
        with (root / name).open("rb") as file, Image.open(file) as picture:
            return _Decoded(_prepared(picture.convert("RGB")))
    except _NO_PICTURE as error:
        return _Decoded(None, False, shown(error))
    except OSError as error:
        if error.errno in _MISSING:
            return _Decoded(None, True, "there is no such file")
        if error.errno is not None:
            raise
        return _Decoded(None, False, shown(error))


def _prepared(picture: Image.Image) -> np.ndarray:
    """uint8 [224, 224, 3], as torchvision's Resize and CenterCrop make it."""
    width, height = picture.size
    short = min(width, height)
    if max(width, height) > _MOST_OBLONG * short:
        raise ValueError(f"{width} x {height} pixels are a line, not a picture")
    size = (int(RESIZE * width / short), int(RESIZE * height / short))
    resized = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((n - CROP) / 2) for n in size)
    return np.asarray(resized.crop((left, top, left + CROP, top + CROP)))


def _key(images: Sequence[str], root: epath.Path) -> str:
    """Hashes names, sizes and times of the files, not their contents, which may be 30 GB."""
    digest = hashlib.sha256(json.dumps([_VERSION, CROP, len(images)]).encode())
    for item, name in enumerate(images):
        if name:
            path = root / name
            stat = None if "://" in name or not path.is_file() else path.stat()
            state = None if stat is None else (stat.length, stat.mtime)
            digest.update(json.dumps([item, name, state]).encode())
    return digest.hexdigest()[:20]
