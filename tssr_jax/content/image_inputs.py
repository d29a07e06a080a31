"""Inputs of an image encoder for the items of a batch: pixels, or states of its frozen stages.

A frozen encoder's vectors are computed once, like those of texts. Frozen stages below trained ones
run once as well; their states are kept on disk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import ml_collections
import numpy as np
from rich.progress import track

from tssr_jax.content import array_store
from tssr_jax.content.array_store import ArrayStore
from tssr_jax.content.bert import unit_length
from tssr_jax.content.blocks import FeatureTable, encoded, remove_blocks, require_finite
from tssr_jax.content.image_encoder import ImagePart, TrainedImages
from tssr_jax.content.pictures import decoded_images
from tssr_jax.content.resnet import (
    CROP,
    STATISTICS,
    ResNet,
    ResNetConfig,
    load_resnet,
    normalise,
)
from tssr_jax.content.trained import NO_ITEM
from tssr_jax.data_pipeline import cache, fetching
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.engine import IN_PROCESS, Engine
from tssr_jax.errors import UserError
from tssr_jax.parallel.devices import exactly

_VERSION = 2
# A step is compiled for each number of images per device. This bounds how many numbers occur.
_NUMBERS_OF_IMAGES = 8
_IMAGES_PER_BATCH = 32
_MICRO_BATCHES_PER_PART = 8


class PreparedImages(NamedTuple):
    """An image encoder with the pictures of a catalogue; see `PreparedEncoder`.

    Attributes:
      key: identifies images, encoder and settings.
      encoder: the trained part.
      params: its pretrained parameters.
      store: pixels, or the frozen stages' states of them.
      inputs: empty, because batches contain the inputs.
    """

    key: str
    encoder: TrainedImages
    params: dict[str, Any]
    store: ArrayStore
    inputs: tuple[()] = ()

    def part(self, items: tf.Tensor, num_devices: int, mine: slice) -> ImagePart:
        """See `PreparedEncoder`."""
        most = min(self.store.items.size, int(np.prod(items.shape)))

        def read(items: np.ndarray) -> list[np.ndarray]:
            distinct = np.unique(items)
            own = distinct[self.store.rows[distinct] >= 0]
            return list(self._dealt(own, most, num_devices, mine, as_few_as_can_be=True))

        size = (CROP, CROP, 3) if self.encoder.first_stage < 0 else self.store.shape
        ids, rows = tf.numpy_function(read, [items], [tf.int32, tf.as_dtype(self.store.dtype)])
        return ImagePart(tf.ensure_shape(ids, [None]), tf.ensure_shape(rows, [None, *size]))

    def catalogue_parts(self, num_devices: int, mine: slice) -> Iterator[ImagePart]:
        """See `PreparedEncoder`."""
        share = _MICRO_BATCHES_PER_PART * self.encoder.micro_batch
        items = self.store.items
        number = share * num_devices
        for start in range(0, items.size, number):
            yield ImagePart(*self._dealt(items[start : start + number], number, num_devices, mine))

    def _dealt(
        self,
        own: np.ndarray,
        most: int,
        num_devices: int,
        mine: slice,
        *,
        as_few_as_can_be: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Distributes items over the devices round robin, and reads this process's items."""
        micro = self.encoder.micro_batch
        most_units = max(1, -(-most // (num_devices * micro)))
        unit = -(-most_units // _NUMBERS_OF_IMAGES) * micro
        share = max(1, -(-own.size // (num_devices * unit))) * unit
        if not as_few_as_can_be:
            share = most_units * micro
        ids = np.full(share * num_devices, NO_ITEM, np.int32)
        ids[: own.size] = own
        ids = np.ascontiguousarray(ids.reshape(share, num_devices).T[mine]).reshape(-1)
        return ids, self._read(ids)

    def _read(self, ids: np.ndarray) -> np.ndarray:
        there = ids != NO_ITEM
        arrays = self.store(ids[there])
        rows = np.zeros((ids.size, *arrays.shape[1:]), arrays.dtype)
        rows[there] = arrays
        return rows


def image_features(
    images: Sequence[str],
    raw_dir: str,
    settings: ml_collections.ConfigDict,
    cache_dir: str,
    engine: Engine = IN_PROCESS,
) -> FeatureTable:
    """Features of a catalogue by a frozen encoder, from the cache or new.

    Args:
      images: path of the picture of item i + 1 at index i, see `decoded_images`.
      raw_dir: folder (or bucket) of the raw files.
      settings: section `content.image` of the config.
      cache_dir: where pictures and features are kept.
      engine: decodes and encodes the pictures.
    """
    path = _model_file(settings)
    store = decoded_images(images, raw_dir, cache_dir, engine)
    key = _key(store, path)
    name = f"features/{key}.npy"
    known = cache.find_array(cache_dir, name)
    if known is not None:
        return FeatureTable(key, known)
    table = np.zeros((len(images) + 1, load_resnet(path)[0].num_features), np.float32)
    size = _IMAGES_PER_BATCH
    parts = np.split(store.items, range(size, store.items.size, size))
    done = encoded(
        parts,
        store,
        functools.partial(_BlockEncoder, path.absolute()),
        engine=engine,
        cache_dir=cache_dir,
        key=key,
        description="Encoding images",
    )
    for items, vectors in done:
        table[items] = vectors
    require_finite(table, path)
    cache.save_array(cache_dir, name, table)
    remove_blocks(cache_dir, key, len(parts))
    return FeatureTable(key, table)


class _BlockEncoder:
    """A worker: unit vectors of pictures uint8 [number, height, width, 3], float32 [number, d]."""

    def __init__(self, path: Path):
        config, variables = load_resnet(path)

        @jax.jit
        @exactly
        def vectors(variables: Any, pixels: jax.Array) -> jax.Array:
            return unit_length(cast(jax.Array, ResNet(config).apply(variables, pixels)))

        self._vectors = functools.partial(vectors, jax.device_put(variables))

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        fill = [(0, _IMAGES_PER_BATCH - len(pixels)), (0, 0), (0, 0), (0, 0)]
        return np.asarray(self._vectors(np.pad(pixels, fill)))[: len(pixels)]


def prepare_images(
    images: Sequence[str],
    raw_dir: str,
    settings: ml_collections.ConfigDict,
    cache_dir: str,
    engine: Engine = IN_PROCESS,
) -> PreparedImages:
    """Decodes the pictures and loads the encoder.

    Args:
      images: path of the picture of item i + 1 at index i, see `decoded_images`.
      raw_dir: folder (or bucket) of the raw files.
      settings: section `content.image` of the config.
      cache_dir: where pictures and states are kept.
      engine: decodes the pictures.

    Raises:
      UserError: if the encoder has fewer stages than are to be trained, or there is no picture.
    """
    path = _model_file(settings)
    config, variables = load_resnet(path)
    stages = len(config.stage_sizes)
    if settings.trained_stages > stages:
        raise UserError(
            f"--config.content.image.trained_stages is {settings.trained_stages}; the encoder in "
            f"{path} has {stages} stages (-1 trains all of them and the stem)."
        )
    first = -1 if settings.trained_stages < 0 else stages - settings.trained_stages
    store = decoded_images(images, raw_dir, cache_dir, engine)
    key = _key(store, path)
    if first >= 0:
        store = _frozen_states(store, (config, variables), first, f"{key}-{first}", cache_dir)
    encoder = TrainedImages(config, first, settings.micro_batch)
    names = [f"stage_{i}" for i in range(max(0, first), stages)] + ["stem"] * (first < 0)
    params = {name: variables["params"][name] for name in sorted(names)}
    params[STATISTICS] = {name: variables[STATISTICS][name] for name in sorted(names)}
    return PreparedImages(f"{key}-{settings.trained_stages}", encoder, params, store)


def _frozen_states(
    pixels: ArrayStore,
    encoder: tuple[ResNetConfig, dict[str, Any]],
    stages: int,
    key: str,
    cache_dir: str,
) -> ArrayStore:
    """States after the stem and the first `stages` stages, from the cache or new."""
    store = array_store.find(cache_dir, key)
    if store is not None:
        return store
    config, variables = encoder

    @jax.jit
    @exactly
    def below(variables: Any, rows: jax.Array) -> Any:
        return ResNet(config).apply(variables, normalise(rows), -1, stages, method=ResNet.run)

    run = functools.partial(below, jax.device_put(variables))
    states = (
        (int(item), array)
        for items, results in _in_batches(run, pixels, "Running frozen stages")
        for item, array in zip(items, results, strict=True)
    )
    counts = pixels.counts
    return array_store.write(cache_dir, key, states, pixels.rows.size, counts=counts, notes=())


def _in_batches(
    function: Callable[[np.ndarray], Any], store: ArrayStore, description: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Applies a function of pixels to all items of a store; yields (items, results) in batches."""
    items = store.items
    starts = range(0, items.size, _IMAGES_PER_BATCH)
    for start in track(starts, description, disable=len(starts) < 4):
        some = items[start : start + _IMAGES_PER_BATCH]
        fill = [(0, _IMAGES_PER_BATCH - some.size), (0, 0), (0, 0), (0, 0)]
        yield some, np.asarray(function(np.pad(store(some), fill)))[: some.size]


def _model_file(settings: ml_collections.ConfigDict) -> Path:
    if not settings.model_file:
        raise UserError(
            "Pictures need an image encoder: --config.content.image.model_file=FILE with the "
            "weights of a ResNet-50 in torchvision's layout, .safetensors or .pth (for example "
            "download.pytorch.org/models/resnet50-11ad3fa6.pth)."
        )
    return Path(settings.model_file).expanduser()


def _key(store: ArrayStore, path: Path) -> str:
    if not path.is_file():
        raise UserError(
            f"--config.content.image.model_file: there is no file {path}. {fetching.MOVED}"
        )
    return f"{store.folder.name}-{fetching.file_sha256(path)[:16]}-v{_VERSION}"
