"""The user's own vectors of items, of any width: by a language model, CLIP, or anything else.

They lie in the folder of raw files (`data.raw_dir`), in one of these:

    vectors.npy          [items, width], with the items' ids in vectors.txt, one a line
    vectors.safetensors  the same, as its only tensor
    items.parquet        a column `vector` of lists, beside the ids (`data.item_column`)

Vectors are scaled to L2 norm 1. An item without a vector, or with one of zeros, has a row of zeros,
in whose place the model learns a vector.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np
import polars as pl

from tssr_jax.content.blocks import FeatureTable
from tssr_jax.content.weights import load_tensors
from tssr_jax.data_pipeline.sources import values
from tssr_jax.data_pipeline.sources.base import Dump, RawFiles, find_files
from tssr_jax.data_pipeline.sources.delimited import Chunk, require_columns
from tssr_jax.data_pipeline.sources.descriptions import with_ids_of_interactions
from tssr_jax.data_pipeline.sources.tables import VECTORS
from tssr_jax.errors import UserError, shown
from tssr_jax.parallel import processes

_FILES = ("vectors.npy", "vectors.safetensors", "items.parquet")
_IDS = "vectors.txt"
_ROW = "row"


def own_vectors(item_ids: Sequence[str], data: ml_collections.ConfigDict) -> FeatureTable:
    """The vectors of a catalogue.

    Args:
      item_ids: id of item i + 1 at index i.
      data: section `data` of the config; says where the raw files lie.

    Raises:
      UserError: if there is no file of vectors, if it is malformed (NaN, an id twice, several
        widths), or if most items have none.
    """
    (path,) = find_files(data, [_FILES], "The modality 'vectors'")
    if path.suffix == ".parquet":
        ids, vectors = of_table(path, data.item_column)
    else:
        (names,) = find_files(data, [[_IDS]], f"Ids of {path.name}")
        ids, vectors = _lines(names), _array(path)
        if len(ids) != len(vectors):
            raise UserError(
                f"{names} has {len(ids):,} lines, and {path} {len(vectors):,} vectors: each line "
                "is the id of one vector."
            )
    if not vectors.size:
        raise UserError(f"{path}: no item has a vector.")
    check_vectors(ids, vectors, path, may_repeat=data.repeated_items == "first")
    rows = pl.DataFrame({"item": ids, _ROW: np.arange(len(ids))}).unique("item", keep="first")
    wanted = pl.Series("item", item_ids, pl.String)
    files = RawFiles(str(path.parent), "", Path("the interactions"), path)
    rows = with_ids_of_interactions(rows, wanted, Dump(files, data, Counter()))
    found = wanted.to_frame().join(rows, on="item", how="left", maintain_order="left")[_ROW]
    there = found.is_not_null().to_numpy()
    table = np.zeros((len(item_ids) + 1, vectors.shape[1]), np.float32)
    table[1:][there] = unit_rows(vectors[found.drop_nulls().to_numpy()])
    without = int((~table[1:].any(axis=1)).sum())
    if processes.is_first():
        print(
            f"{path.name}: vectors of width {vectors.shape[1]:,}; {without:,} of "
            f"{len(item_ids):,} items have none.",
            flush=True,
        )
    return FeatureTable(hashlib.sha256(table.tobytes()).hexdigest()[:20], table)


def of_table(path: Path, item_column: str) -> tuple[pl.Series, np.ndarray]:
    """Ids and vectors float32 [items, width] of a Parquet table, but for rows without a vector.

    Raises:
      UserError: if the table has no column of vectors of one width.
    """
    if path.suffix != ".parquet":
        raise UserError(f"{path}: vectors are lists, which only a Parquet file holds.")
    try:
        schema = pl.read_parquet_schema(path)
        hint = f"Vectors of items are lists of numbers in a column {VECTORS!r}."
        require_columns(list(schema), (item_column, VECTORS), path, hint)
        table = pl.read_parquet(path, columns=[item_column, VECTORS])
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file: {shown(error)}") from error
    kind = schema[VECTORS]
    if not isinstance(kind, pl.List | pl.Array) or not kind.inner.is_numeric():
        raise UserError(
            f"{path}: column {VECTORS!r} is of type {shown(kind)}; vectors are lists of numbers."
        )
    lines = np.arange(1, table.height + 1)
    if not schema[item_column].is_integer() and schema[item_column] != pl.String:
        raise UserError(
            f"{path}: column {item_column!r} is of type {shown(schema[item_column])}; ids are "
            "strings or whole numbers."
        )
    texts = table.select(pl.col(item_column).cast(pl.String))
    ids = values.parse_ids(Chunk(lines, texts), item_column, path)
    vectors = table[VECTORS].cast(pl.List(pl.Float32))
    there = vectors.list.len().fill_null(0) > 0
    ids, vectors, lines = ids.filter(there), vectors.filter(there), lines[there.to_numpy()]
    widths = vectors.list.len().to_numpy()
    other = np.flatnonzero(widths != (widths[0] if widths.size else 0))
    if other.size:
        (_, one), (row, another) = ((lines[i], shown(ids[int(i)])) for i in (0, other[0]))
        raise UserError(
            f"{path}: the vector of item {one!r} has {widths[0]:,} numbers, that of item "
            f"{another!r} (row {row:,}) has {widths[other[0]]:,}. Give all of them one width, and "
            "leave a cell empty where there is no vector."
        )
    flat = vectors.explode().fill_null(np.nan).to_numpy()
    return ids, flat.reshape(len(ids), -1) if len(ids) else flat.reshape(0, 1)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Vectors scaled to L2 norm 1; rows of zeros stay."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    scaled = vectors / np.where(largest > 0, largest, 1.0)  # so that no square over- or underflows
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.asarray(scaled / np.where(norms > 0, norms, 1.0), np.float32)


def check_vectors(
    ids: pl.Series, vectors: np.ndarray, path: Path, *, may_repeat: bool = False
) -> None:
    """Raises UserError if a vector is not finite, or an id occurs twice."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise UserError(
            f"{path}: the vector of item {shown(ids[int(bad[0])])!r} has NaN, infinite or empty "
            f"values ({bad.size:,} vectors have). Compute them anew, or leave these items out."
        )
    twice = ids.filter(ids.is_duplicated())
    if len(twice) and not may_repeat:
        first, second = (ids == twice[0]).arg_true().head(2)
        raise UserError(
            f"{path} has two vectors of item {shown(twice[0])!r}, numbers {first + 1:,} and "
            f"{second + 1:,}: keep one, or set --config.data.repeated_items=first."
        )


def _lines(path: Path) -> pl.Series:
    try:
        lines = path.read_text("utf-8-sig").removesuffix("\n").split("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} can't be read as UTF-8 text ({shown(error)}).") from error
    empty = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
    if empty is not None:
        raise UserError(f"{path}, line {empty}: there is no id. Each line is the id of one vector.")
    return pl.Series("item", [line.strip() for line in lines], pl.String)


def _array(path: Path) -> np.ndarray:
    """float32 [items, width]."""
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{path} is no readable array of NumPy ({shown(error)}).") from error
    else:
        tensors = load_tensors(path)
        if len(tensors) != 1:
            raise UserError(f"{path} has the tensors {shown(sorted(tensors))}; it must be one.")
        (array,) = tensors.values()
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiuV" or array.dtype.names:
        raise UserError(
            f"{path} holds {array.dtype} {array.shape}; vectors are numbers [items, width]."
        )
    return np.asarray(array, np.float32)
