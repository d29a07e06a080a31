"""From two DataFrames to a recommender, in one call."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import polars as pl
from etils import epath

from tssr_jax.adapting import adapted
from tssr_jax.config import flattened, load
from tssr_jax.config.choices import reads_content
from tssr_jax.config.fields import unknown_field
from tssr_jax.config.saved import FILE_NAME
from tssr_jax.data_pipeline.sources.delimited import require_columns
from tssr_jax.data_pipeline.sources.tables import VECTORS
from tssr_jax.errors import UserError, shown
from tssr_jax.recommending.frames import Frame, as_polars
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.reporting import adapt_to_notebooks
from tssr_jax.training.loop import train

_DATA, _TITLE = "fit_data", "title"
# Fields that `fit` sets by itself.
_OWN = ("data.source", "data.raw_dir", "data.edition", "baseline.kind")


def fit(
    interactions: Frame,
    items: Frame | None = None,
    *,
    users: Frame | None = None,
    workdir: str | Path | None = None,
    **settings: Any,
) -> Recommender:
    """Trains on DataFrames, tests, and returns the recommender.

        recommender = fit(interactions, items, train={"num_epochs": 20}, seed=1)
        recommender.metrics.test["ndcg@10"]
        lists = recommender.recommend(histories)  # DataFrames, too
        recommender.save("model")

    Fields that are not set adapt to the data, as those of `--config=csv:FOLDER` do.

    Args:
      interactions: columns user, item and timestamp (dates, or seconds since 1970), a row each, in
        any order; of polars, pandas, or another library.
      items: columns item and title; also category, categories, genre or genres, which follow the
        title in an item's text; and `vector`, lists, which are the user's own vectors of the items
        (`content.modalities`). With vectors there need be no titles. None: the model learns from
        ids alone.
      users: column user, and a column for each field that the model reads beside histories, such
        as gender; `data={"user_fields": [...]}` chooses among them.
      workdir: the run's folder. The same call goes on from what is there. None: a temporary one,
        which is removed with the recommender.
      settings: fields of the configuration, by section, e.g. `model={"d_model": 64}, seed=1`.

    Raises:
      UserError: if the data or a setting make no sense, or training was stopped by SIGTERM.
    """
    adapt_to_notebooks()
    temporary = None
    if ":/" in str(workdir):  # also a Path of gs://
        raise UserError(f"workdir is {workdir}; `fit` writes to a folder of this machine.")
    if workdir is None:
        temporary = tempfile.TemporaryDirectory(prefix="tssr_jax-")
        workdir = temporary.name
    folder = Path(workdir).expanduser().absolute()
    config = load(f"csv:{folder / _DATA}")
    events = as_polars(interactions, "The DataFrame of interactions")
    described = None if items is None else as_polars(items, "The DataFrame of items")
    of_users = None if users is None else as_polars(users, "The DataFrame of users")
    _update(config, _of_columns(described) | _of_users(of_users, settings), settings)
    item = config.data.item_column
    if described is None:
        hint = "Set data={'item_column': ...} to the name that it has."
        require_columns(events.columns, [item], Path("interactions"), hint)
        described = events.select(item).unique(maintain_order=True)
    has_texts = _TITLE in described.columns or bool(config.data.text_fields)
    if not has_texts and not _reads_texts(config):
        described = described.with_columns(pl.lit("").alias(_TITLE))
    if of_users is None and config.data.user_fields:
        raise UserError("data has user_fields: give the DataFrame that has them, users=...")
    frames = {"interactions": events, "items": described}
    if of_users is not None:
        frames["users"] = of_users
    _write(folder, frames)
    if _trained(config, folder, has_texts) is None:
        kept = "Nothing was kept: give a workdir, and" if temporary else f"{folder} is kept:"
        raise UserError(f"Training was stopped. {kept} the next call with it goes on.")
    recommender = Recommender.from_workdir(folder)
    recommender.temporary = temporary
    return recommender


def _trained(config: ml_collections.ConfigDict, folder: Path, has_texts: bool) -> Any:
    """The test metrics; None if training was stopped. Errors tell of DataFrames, not of files."""
    try:
        return train(adapted(config, workdir=epath.Path(folder), has_texts=has_texts), folder)
    except UserError as error:
        raise UserError(_of_frames(str(error), folder / _DATA)) from error


def _of_frames(message: str, data: Path) -> str:
    """An error about the files in `data`, in the words of who has DataFrames and settings."""
    for name in ("interactions", "items", "users"):
        message = message.replace(str(data / f"{name}.parquet"), f"The DataFrame of {name}")
    return message.replace(", line ", ", row ").replace("--config.", "")


def _of_columns(items: pl.DataFrame | None) -> dict[str, Any]:
    """Fields that the columns of items decide."""
    if items is None:
        return {"model.streams": ("id",)}
    if VECTORS not in items.columns:
        return {}
    if _TITLE in items.columns:
        return {"content.modalities": ("text", "vectors")}
    return {"content.modalities": ("vectors",)}


def _of_users(users: pl.DataFrame | None, settings: dict[str, Any]) -> dict[str, Any]:
    """The fields of users: all columns but that of ids."""
    if users is None:
        return {}
    own = settings.get("data", {}).get("user_column", "user")
    return {"data.user_fields": tuple(name for name in users.columns if name != own)}


def _reads_texts(config: ml_collections.ConfigDict) -> bool:
    by_content = reads_content(config.model.streams) and "text" in config.content.modalities
    by_words = "words" in (config.model.memory or ())
    return by_content or by_words


def _update(
    config: ml_collections.ConfigDict, by_columns: dict[str, Any], settings: dict[str, Any]
) -> None:
    known, asked = flattened(config), flattened(settings)
    for name in asked:
        if name not in known:
            raise UserError(unknown_field(name, known))
        if name in _OWN:
            raise UserError(f"{name} can't be set: `fit` trains a model on its DataFrames.")
    for name, given in (by_columns | asked).items():
        value = given.item() if isinstance(given, np.generic) else given
        value = str(value) if isinstance(value, Path) else value
        value = tuple(value) if isinstance(value, list) else value
        try:
            if value is None and known[name] is not None:
                raise TypeError(f"it is of type {type(known[name]).__name__}")
            config.update_from_flattened_dict({name: value})
        except (TypeError, ValueError) as error:
            raise UserError(f"{name} can't be {shown(repr(given))}: {shown(error)}") from error


def _write(folder: Path, frames: dict[str, pl.DataFrame]) -> None:
    """Writes the DataFrames to workdir/fit_data; raises UserError if a run there has others."""
    data, part = folder / _DATA, folder / f"{_DATA}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for name, frame in frames.items():
            frame.write_parquet(part / f"{name}.parquet")
        if data.is_dir() and all(
            (data / path.name).is_file()
            and pl.read_parquet(path).equals(pl.read_parquet(data / path.name))
            for path in part.iterdir()
        ):
            return
        if (folder / FILE_NAME).exists():
            raise UserError(f"{folder} holds a run on other data. Name another workdir.")
        shutil.rmtree(data, ignore_errors=True)
        part.rename(data)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"A column can't be stored ({shown(error, 300)}).") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
