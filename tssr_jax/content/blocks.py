"""Encodes a catalogue in blocks, by any engine; keeps finished blocks until all are finished."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from rich.progress import track

from tssr_jax.data_pipeline import cache
from tssr_jax.engine import Engine

P = TypeVar("P")
B = TypeVar("B")
# Fewer blocks take no time worth a progress bar.
_FEW = 4


def encoded(
    parts: Sequence[P],
    read: Callable[[P], B],
    make: Callable[[], Callable[[B], np.ndarray]],
    *,
    engine: Engine,
    cache_dir: str,
    key: str,
    description: str,
) -> Iterator[tuple[P, np.ndarray]]:
    """Encodes each part of a catalogue.

    Args:
      parts: which items make each block.
      read: what an encoder needs of a part.
      make: makes an encoder, see `Engine`.
      engine: applies it.
      cache_dir: finished blocks are kept there until all are finished.
      key: identifies the catalogue and the encoder.
      description: for the progress bar.

    Yields:
      The parts and their results, in any order.
    """
    local = str(cache.local_folder(cache_dir))  # blocks are not for a bucket
    folder = f"features/{key}-{len(parts)}.blocks"
    names = [f"{folder}/{number:06}.npy" for number in range(len(parts))]
    known = [cache.find(local, name) is not None for name in names]
    left = [number for number, found in enumerate(known) if not found]

    def results() -> Iterator[tuple[int, np.ndarray]]:
        for number, found in enumerate(known):
            if found:
                array = cache.find_array(local, names[number])
                if array is None:  # damaged
                    left.append(number)
                else:
                    yield number, array
        for index, array in engine.map(make, (read(parts[number]) for number in left)):
            cache.save_array(local, names[left[index]], array)
            yield left[index], array

    bar = track(results(), description, len(parts), disable=len(parts) < _FEW)
    for number, array in bar:
        yield parts[number], array
    shutil.rmtree(cache.local_folder(local) / folder, ignore_errors=True)
