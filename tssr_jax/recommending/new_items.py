"""Adds items that training has not seen to the catalogue of a model that reads content.

The id table and the head get rows of zeros for them, which count as never trained: the model ranks
such an item by its text and its picture, and, if items share id vectors, by those of items with
like texts.
"""

import dataclasses
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import polars as pl

from tssr_jax.config.choices import ranks_by_content, reads_content
from tssr_jax.content.categories import LISTS, multi_hot, values_of
from tssr_jax.content.image_inputs import image_features
from tssr_jax.content.own_vectors import check_vectors, of_table, unit_rows
from tssr_jax.content.text_features import text_features
from tssr_jax.data_pipeline.sources import tables, values
from tssr_jax.data_pipeline.sources.own_files import own_fields
from tssr_jax.data_pipeline.texts import describe
from tssr_jax.errors import UserError, shown
from tssr_jax.memory.scores import Memories, Neighbours
from tssr_jax.memory.tables import scale_of, word_table
from tssr_jax.memory.words import word_neighbours
from tssr_jax.models.content import Content
from tssr_jax.models.shared_ids import sharing
from tssr_jax.parallel import sharding
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.devices import CLASSES
from tssr_jax.run import Run


def read_new_items(path: Path, config: ml_collections.ConfigDict) -> pl.DataFrame:
    """Reads a table of items, CSV or Parquet, whose columns are named like the catalogue's own.

    Args:
      path: a table with the column of ids (`data.item_column`), the columns `data.text_fields` (by
        default title and categories, as with source "csv") and `content.category_fields`, `image`
        if there are pictures, and `vector` if the model reads the user's own vectors.
      config: the run's.

    Returns:
      Columns item, title, text, image; and as lists, if they are read, `vector` (null without one)
      and `categories`.

    Raises:
      UserError: if the table can't be read, a column or an id is missing, or an id occurs twice.
    """
    data = config.data
    if not path.is_file():
        raise UserError(f"--new_items: there is no file {path}.")
    reads = reads_content(config.model.streams)
    vectors = reads and "vectors" in config.content.modalities
    words = "words" in config.model.memory or config.model.id_neighbours
    texts = bool(data.text_fields or words or not vectors) or len(config.content.modalities) > 1
    categories = tuple(config.content.category_fields) if reads else ()
    needed = (data.item_column, *(data.text_fields or (("title",) if texts else ())), *categories)
    hint = "New items need the columns by which the catalogue's own are described."
    rows = tables.read_table(path, needed=needed, hint=hint)
    lines, table = rows
    if "title" not in table.columns and not texts:
        table = table.with_columns(title=pl.lit(""))
    fields = tuple(data.text_fields) or own_fields(table.columns)
    ids = values.parse_ids(rows, data.item_column, path)
    twice = ids.filter(ids.is_duplicated())
    if len(twice):
        first, second = (ids == twice[0]).arg_true().head(2)
        raise UserError(
            f"{path} has item {shown(twice[0])!r} twice, in lines {lines[first]} and "
            f"{lines[second]}: keep one."
        )
    table = table.select(ids.alias("item"), pl.exclude(data.item_column, "item"))
    described = describe(table, fields, data.text_field_length)
    if categories:
        own = table.select("item", values_of(categories))
        described = described.join(own, on="item", how="left", maintain_order="left")
    if not vectors:
        return described
    owners, rows_of = of_table(path, data.item_column)
    check_vectors(owners, rows_of, path)
    own = pl.DataFrame({"item": owners, tables.VECTORS: unit_rows(rows_of).tolist()})
    return described.join(own, on="item", how="left", maintain_order="left")


def with_new_items(run: Run, params: Any, described: pl.DataFrame) -> tuple[Run, Any]:
    """The run with a larger catalogue, and the parameters for it.

    Args:
      run: the run, with the whole catalogue on each device.
      params: its parameters, on the devices.
      described: columns text and image of the new items, which follow the others.

    Raises:
      UserError: if the model ranks no items by their content.
    """
    config, devices = run.config, run.devices
    if not ranks_by_content(config.model.head, config.model.streams):
        raise UserError(
            f"This run can't rank new items: --config.model.head={config.model.head} of the "
            f"streams {tuple(config.model.streams)} knows items by weights of their own. Train "
            "with --config.model.head=tied and a stream that reads content."
        )
    catalogue = Catalogue(run.data.num_items + described.height)
    features = {}
    for name, table in run.content.features.items():
        new = _features(name, run, described)
        features[name] = devices.place(np.concatenate([np.asarray(table), new]), CLASSES)
    known = np.concatenate([np.asarray(run.content.known), np.zeros(described.height, bool)])
    memories, neighbours = _by_words(run, described["text"].to_list())
    larger = dataclasses.replace(
        run,
        content=Content(
            features,
            known=devices.place(known, CLASSES),
            memories=devices.place(memories),
            neighbours=devices.place(neighbours),
        ),
        known=known,
        model=run.model.clone(catalogue=catalogue),
    )
    padded = sharding.pad_classes(params, catalogue)
    return larger, devices.place(padded, sharding.layout(padded))


def _by_words(run: Run, texts: list[str]) -> tuple[Memories | None, Neighbours | None]:
    """Memories and `Content.neighbours` of the larger catalogue.

    The new items have words, and nobody took them. They read the id vectors of others, which read
    none of theirs.
    """
    memories, config, known = run.content.memories, run.config, run.data.texts
    words = None
    if config.model.id_neighbours or "words" in config.model.memory:
        number = config.memory.neighbours
        words = word_neighbours([*known, *texts], number, num_weighed=len(known))
    neighbours = None
    if words is not None and run.content.neighbours is not None:
        new = Neighbours(*(values[len(known) + 1 :] for values in words))
        of_new = sharing(new, run.content.neighbours.classes.shape[1], len(known))
        pairs = zip(run.content.neighbours, of_new, strict=True)
        neighbours = Neighbours(*(np.concatenate([np.asarray(own), more]) for own, more in pairs))
    if memories is None:
        return None, neighbours
    tables = dict(memories.tables)
    if words is not None and "words" in tables:
        scale = scale_of(word_table(known, config.memory, config.data.cache_dir))
        tables["words"] = words._replace(likeness=words.likeness / np.float32(scale))
    for name in tables.keys() - {"words"}:
        none = ((0, len(texts)), (0, 0))
        tables[name] = Neighbours(*(np.pad(np.asarray(values), none) for values in tables[name]))
    more = (0, len(texts))
    frequency = np.asarray(memories.frequency)
    # As of padding, which nobody took.
    frequency = np.pad(frequency, more, constant_values=frequency[0])
    popularity = memories.popularity
    if popularity is not None:
        scores = np.pad(np.asarray(popularity.scores), ((0, 0), more))
        popularity = popularity._replace(scores=scores)
    more_memories = memories._replace(tables=tables, popularity=popularity, frequency=frequency)
    return more_memories, neighbours


def _features(name: str, run: Run, described: pl.DataFrame) -> np.ndarray:
    """Features of the new items, [new items, width], computed like the catalogue's."""
    config = run.config
    if name == "vectors":
        return _own_vectors(described[tables.VECTORS], run.feature_widths[name])
    if name == "categories":
        return multi_hot(described[LISTS], run.categories)
    settings, cache_dir = config.content[name], config.data.cache_dir
    if name == "text":
        texts = described["text"].to_list()
        return text_features(texts, settings, cache_dir).table[1:]
    images = described["image"].to_list()
    if not any(images):
        return np.zeros((len(images), run.feature_widths[name]), np.float32)
    return image_features(images, config.data.raw_dir, settings, cache_dir).table[1:]


def _own_vectors(vectors: pl.Series, width: int) -> np.ndarray:
    """float32 [new items, width] of lists, with zeros where there is none."""
    table = np.zeros((len(vectors), width), np.float32)
    own = vectors.drop_nulls().to_list()
    if own and len(own[0]) != width:
        raise UserError(
            f"--new_items: vectors have {len(own[0]):,} numbers; those that the model was trained "
            f"on have {width:,}. Compute them by the same encoder."
        )
    if own:
        table[vectors.is_not_null().to_numpy()] = own
    return table
