"""Builds from a configuration what training and evaluation both need."""

import dataclasses
import json
from pathlib import Path

import jax
import ml_collections

from data_pipeline.prepare import PreparedData, prepare
from data_pipeline.text_features import text_features
from tssr_jax.errors import UserError
from tssr_jax.models.tssr import TSSR
from tssr_jax.parallel import DATA_AXIS, DataParallel
from tssr_jax.run_config import validate_config, write_json

DATA_FILE = "data.json"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A configuration with its data and its model.

    Attributes:
      config: validated.
      data: the prepared data set.
      item_features: float32 [num_items + 1, feature_dim] on each device; None without a content
        stream.
      parallel: the devices.
      model: the module; its parameters live elsewhere.
    """

    config: ml_collections.ConfigDict
    data: PreparedData
    item_features: jax.Array | None
    parallel: DataParallel
    model: TSSR


def build_experiment(config: ml_collections.ConfigDict) -> Experiment:
    """Prepares data and features (or finds them in the cache) and makes the model."""
    validate_config(config)
    parallel = DataParallel(config.parallel, config.num_devices)
    data = prepare(config.data)
    features = None
    if "content" in config.model.streams:
        cache_dir = Path(config.data.cache_dir).expanduser()
        features = parallel.replicate(text_features(data.texts, config.content, cache_dir))
    model = make_model(config, data.num_items, DATA_AXIS)
    return Experiment(config, data, features, parallel, model)


def make_model(
    config: ml_collections.ConfigDict, num_items: int, data_axis: str | None = None
) -> TSSR:
    """The model of section `model` of the config."""
    fields = config.model.to_dict()
    streams = tuple(fields.pop("streams"))
    return TSSR(num_items=num_items, streams=streams, data_axis=data_axis, **fields)


def save_data_report(experiment: Experiment, workdir: Path) -> None:
    """Writes workdir/data.json: which data the run was trained on."""
    data = experiment.data
    report = {"key": data.key, "num_users": data.num_users, "num_items": data.num_items}
    write_json(workdir / DATA_FILE, report | {"report": data.report})


def require_same_data(experiment: Experiment, workdir: Path) -> None:
    """Raises UserError if the run in `workdir` was trained on other data."""
    path = workdir / DATA_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist; the run in {workdir} was never started properly.")
    saved = json.loads(path.read_text())
    if saved["key"] != experiment.data.key:
        raise UserError(
            f"The data is not that of the run in {workdir}: it was trained on data set "
            f"{saved['key']} ({saved['num_users']} users, {saved['num_items']} items), now it is "
            f"{experiment.data.key} ({experiment.data.num_users} users, "
            f"{experiment.data.num_items} items). The raw files or the settings that filter them "
            "have changed; restore them, or train in another --workdir."
        )
