"""Builds from a configuration what training and evaluation both need."""

import dataclasses
import json
from typing import Any

import ml_collections
import numpy as np
from etils import epath
from jax.sharding import PartitionSpec

from data_pipeline.prepare import PreparedData, prepare
from data_pipeline.store import SequenceStore, open_store
from data_pipeline.text_features import TextFeatures, text_features
from data_pipeline.text_inputs import PreparedText, prepare_text
from tssr_jax import processes
from tssr_jax.catalogue import Catalogue
from tssr_jax.collectives import Axis
from tssr_jax.errors import UserError
from tssr_jax.models.tssr import TSSR
from tssr_jax.parallel import CLASSES, WHOLE, Devices
from tssr_jax.run_config import validate_config, write_json

DATA_FILE = "data.json"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A configuration with its data and its model.

    Attributes:
      config: validated.
      data: the prepared data set.
      sequences: its sequences, in memory or on disk.
      content: what the content stream reads, laid out as `content_layout`: float32
        [padded_classes, feature_dim], or the inputs of an encoder that is trained; None without
        a content stream.
      content_key: identifies it; "" without a content stream.
      text: the text encoder, if it is trained.
      devices: where it runs.
      model: the module; its parameters live elsewhere.
    """

    config: ml_collections.ConfigDict
    data: PreparedData
    sequences: SequenceStore
    content: Any
    content_key: str
    text: PreparedText | None
    devices: Devices
    model: TSSR

    @property
    def content_layout(self) -> PartitionSpec:
        """How `content` lies on the devices."""
        return CLASSES if self.text is None else WHOLE

    @property
    def feature_width(self) -> int | None:
        """Of the content features; None without a content stream."""
        if self.text is not None:
            return self.text.encoder.bert.config.hidden_size
        return None if self.content is None else int(self.content.shape[-1])


def build_experiment(config: ml_collections.ConfigDict) -> Experiment:
    """Prepares data and features (or finds them in the cache) and makes the model."""
    validate_config(config)
    devices = Devices(config.parallel, config.num_devices, config.model_devices)
    text = None
    features: TextFeatures | None = None
    with processes.first_goes_first("prepare"):
        data = prepare(config.data)
        if "content" in config.model.streams:
            arguments = (data.texts, config.content, config.data.cache_dir)
            if config.content.trained_layers:
                text = prepare_text(*arguments)
            else:
                features = text_features(*arguments)
    catalogue = devices.catalogue(data.num_items)
    content, key = None, ""
    if features is not None:
        fill = catalogue.padded_classes - catalogue.num_classes
        content = devices.place(np.pad(features.table, ((0, fill), (0, 0))), CLASSES)
        key = features.key
    if text is not None:
        content, key = devices.place(text.inputs), text.key
    model = make_model(config, catalogue, devices.rows_axis)
    sequences = open_store(data, config.data.in_memory_gib)
    return Experiment(config, data, sequences, content, key, text, devices, model)


def make_model(
    config: ml_collections.ConfigDict, catalogue: Catalogue, rows_axis: Axis = None
) -> TSSR:
    """The model of section `model` of the config, as one device runs it."""
    fields = config.model.to_dict()
    streams = tuple(fields.pop("streams"))
    return TSSR(catalogue=catalogue, streams=streams, rows_axis=rows_axis, **fields)


def save_data_report(experiment: Experiment, workdir: epath.Path) -> None:
    """Writes workdir/data.json: which data the run was trained on."""
    data = experiment.data
    report = {"key": data.key, "num_users": data.num_users, "num_items": data.num_items}
    report["features_key"] = experiment.content_key
    write_json(workdir / DATA_FILE, report | {"report": data.report})


def require_same_data(experiment: Experiment, workdir: epath.Path) -> None:
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
    if saved["features_key"] != experiment.content_key:
        raise UserError(
            f"The content features are not those of the run in {workdir}: another text encoder "
            "(--config.content.text_model_dir) makes others. Give it the same one, or train in "
            "another --workdir."
        )
