"""Encodes a catalogue in blocks, by any engine; keeps finished blocks until all is saved."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from rich.progress import track

from tssr_jax.data_pipeline import cache
from tssr_jax.engine import Engine
from tssr_jax.errors import UserError

P = TypeVar("P")
B = TypeVar("B")
# Fewer blocks take no time worth a progress bar.
_FEW = 4


class FeatureTable(NamedTuple):
    """Features of a catalogue that are not trained.

    Attributes:
      key: identifies them: what was encoded, encoder and settings.
      table: float32 [num_items + 1, width]; rows have L2 norm 1, or are zero for padding (row 0)
        and items without content.
    """

    key: str
    table: np.ndarray


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
      cache_dir: finished blocks are kept there, see `remove_blocks`.
      key: identifies the catalogue and the encoder.
      description: for the progress bar.

    Yields:
      The parts and their results, in any order.
    """
    local = str(cache.local_folder(cache_dir))  # blocks are not for a bucket
    folder = _folder(key, len(parts))
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
            with contextlib.suppress(FileNotFoundError):  # another process has finished first
                cache.save_array(local, names[left[index]], array)
            yield left[index], array

    bar = track(results(), description, len(parts), disable=len(parts) < _FEW)
    for number, array in bar:
        yield parts[number], array


def remove_blocks(cache_dir: str, key: str, number: int) -> None:
    """Removes the blocks of a catalogue; call this when all is saved that they were for.

    Args:
      cache_dir: see `encoded`.
      key: see `encoded`.
      number: of parts.
    """
    shutil.rmtree(cache.local_folder(cache_dir) / _folder(key, number), ignore_errors=True)


def _folder(key: str, number: int) -> str:
    return f"features/{key}-{number}.blocks"


def require_finite(table: np.ndarray, weights: Path) -> None:
    """Raises UserError if a row of features [number, width] has NaN or infinite values."""
    bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if bad.size:
        raise UserError(
            f"The encoder in {weights} gives NaN or infinite values for {bad.size:,} of "
            f"{len(table) - 1:,} items: its weights are damaged. Fetch them anew."
        )
