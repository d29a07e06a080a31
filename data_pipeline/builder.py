"""The prepared data set as a TFDS builder: sequences with their owner's ids, items with texts.

One builder, two configs, since users and items have different features:

    users   {user_id, items}          split "rows", user u is example u
    items   {item_id, title, text}    split "rows", item i is example i - 1
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from rich.progress import track

from data_pipeline.sequences import Sequences
from data_pipeline.tensorflow_cpu import tf

import tensorflow_datasets as tfds  # isort: skip  (after TensorFlow is set up)

_T = TypeVar("_T")
_READ_BATCH = 4096
# With more users than this, writing takes long enough for a progress bar of ours; TFDS' own bars
# and messages tell of downloads and temporary files.
_LONG = 50_000
tfds.disable_progress_bar()


class SequentialRecommendation(tfds.core.GeneratorBasedBuilder):
    """Writes what `prepare` made; reading needs only the folder.

    Args:
      sequences: the users' sequences.
      items: columns `title` and `text`, row i is item i + 1.
      **kwargs: `data_dir` and `config` ("users" or "items") of TFDS.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        tfds.core.BuilderConfig(name="users", description="One sequence per user."),
        tfds.core.BuilderConfig(name="items", description="Ids, titles and texts."),
    )

    def __init__(
        self,
        *,
        sequences: Sequences | None = None,
        items: pl.DataFrame | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._sequences = sequences
        self._items = items

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        if self.builder_config.name == "users":
            items = tfds.features.Sequence(tfds.features.Scalar(np.int32))
            features = {"user_id": text, "items": items}
        else:
            features = {"item_id": text, "title": text, "text": text}
        return self.dataset_info_from_configs(
            description="Implicit feedback as time-ordered sequences, with item texts.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        users = self.builder_config.name == "users"
        return {"rows": self._user_examples() if users else self._item_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        raise AssertionError("_split_generators names the generators")

    def _user_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        s = _given(self._sequences)
        users = track(s.user_ids, "Writing sequences", disable=len(s.user_ids) < _LONG)
        for user, user_id in enumerate(users):
            items = s.items[s.offsets[user] : s.offsets[user + 1]]
            yield user, {"user_id": user_id, "items": items}

    def _item_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        rows = _given(self._items).select("title", "text").iter_rows()
        for item, (item_id, (title, text)) in enumerate(
            zip(_given(self._sequences).item_ids, rows, strict=True)
        ):
            yield item, {"item_id": item_id, "title": title, "text": text}


def _given(value: _T | None) -> _T:
    if value is None:
        raise ValueError("preparing needs `sequences` and `items`; use data_pipeline.prepare")
    return value


def write(sequences: Sequences, items: pl.DataFrame, data_dir: Path) -> None:
    """Writes both configs below `data_dir`."""
    for config in SequentialRecommendation.builder_configs:
        builder = SequentialRecommendation(
            data_dir=data_dir, config=config, sequences=sequences, items=items
        )
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="tfrecord")


def read_users(data_dir: Path) -> tuple[list[str], tf.Tensor, tf.Tensor]:
    """Users' ids, items int32 [num_interactions] and offsets int64 [num_users + 1]."""
    batches = list(_dataset(data_dir, "users").ragged_batch(_READ_BATCH))
    user_ids = [i.decode() for batch in batches for i in batch["user_id"].numpy()]
    items = tf.concat([batch["items"].flat_values for batch in batches], axis=0)
    lengths = tf.concat([batch["items"].row_lengths() for batch in batches], axis=0)
    return user_ids, items, tf.concat([[0], tf.cumsum(lengths)], axis=0)


def read_items(data_dir: Path) -> dict[str, list[str]]:
    """Columns `item_id`, `title` and `text`; row i is item i + 1."""
    batches = list(_dataset(data_dir, "items").batch(_READ_BATCH).as_numpy_iterator())
    return {
        name: [value.decode() for batch in batches for value in batch[name]]
        for name in ("item_id", "title", "text")
    }


def _dataset(data_dir: Path, config: str) -> tf.data.Dataset:
    builder = SequentialRecommendation(data_dir=data_dir, config=config)
    # One file at a time, in order: example u is user u.
    read_config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    return builder.as_dataset(split="rows", shuffle_files=False, read_config=read_config)
