"""Builds from a configuration what training and evaluation both need."""

import dataclasses
import json
from typing import Any

import ml_collections
import numpy as np
from etils import epath
from jax.sharding import PartitionSpec

from data_pipeline.counts import training_counts
from data_pipeline.distinct import PreparedEncoder
from data_pipeline.image_inputs import ImageFeatures, image_features, prepare_images
from data_pipeline.input_pipeline import NOTHING_TO_TRAIN_ON
from data_pipeline.prepare import PreparedData, prepare
from data_pipeline.store import SequenceStore, open_store
from data_pipeline.text_features import TextFeatures, text_features
from data_pipeline.text_inputs import prepare_text
from tssr_jax import processes
from tssr_jax.catalogue import Catalogue
from tssr_jax.collectives import Axis
from tssr_jax.compiled_programs import keep_compiled_programs
from tssr_jax.errors import UserError
from tssr_jax.losses.negatives import CHANCES, cumulative_chances
from tssr_jax.models.content.fusion import MODALITIES
from tssr_jax.models.content.trained import TrainedEncoder, parameters_name
from tssr_jax.models.tssr import KNOWN, TSSR, ranks_by_content, reads_content
from tssr_jax.optimizer import EncoderSteps
from tssr_jax.parallel import CLASSES, WHOLE, Devices
from tssr_jax.run_config import write_json
from tssr_jax.validation import validate_config

DATA_FILE = "data.json"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A configuration with its data and its model.

    Attributes:
      config: validated.
      data: the prepared data set.
      sequences: its sequences, in memory or on disk.
      content: by modality what the content stream reads, on the devices as `content_layout` says:
        features float32 [padded_classes, feature_dim], or the inputs of an encoder that is
        trained; {} without a content stream. For a head that reads content also "known", for
        drawn negatives "chances".
      content_key: identifies it; "" without a content stream.
      encoders: content encoders that are trained, by modality.
      known: bool [num_classes], items that a training window contains; None where nothing asks.
      devices: where it runs.
      model: the module; its parameters live elsewhere.
    """

    config: ml_collections.ConfigDict
    data: PreparedData
    sequences: SequenceStore
    content: dict[str, Any]
    content_key: str
    encoders: dict[str, PreparedEncoder]
    known: np.ndarray | None
    devices: Devices
    model: TSSR

    def content_layout(self) -> dict[str, PartitionSpec]:
        """How `content` lies on the devices."""
        whole = {*self.encoders, CHANCES}
        return {name: WHOLE if name in whole else CLASSES for name in self.content}

    @property
    def feature_widths(self) -> dict[str, int]:
        """Of the content features, by modality."""
        return {
            name: self.encoders[name].encoder.width if name in self.encoders else table.shape[-1]
            for name, table in self.content.items()
            if name in MODALITIES
        }

    @property
    def trained(self) -> dict[str, TrainedEncoder]:
        """The encoders that are trained, by modality."""
        return {name: prepared.encoder for name, prepared in self.encoders.items()}

    @property
    def pretrained(self) -> dict[str, Any]:
        """Their pretrained parameters, by the names of these."""
        return {parameters_name(name): p.params for name, p in self.encoders.items()}

    def encoder_steps(self) -> dict[str, EncoderSteps]:
        """Their step sizes, by the names of their parameters."""
        return {
            parameters_name(name): EncoderSteps(
                section.learning_rate, section.layer_decay, encoder.depth
            )
            for name, encoder in self.trained.items()
            for section in (self.config.content[name],)
        }


def build_experiment(config: ml_collections.ConfigDict) -> Experiment:
    """Prepares data and features (or finds them in the cache) and makes the model."""
    validate_config(config)
    keep_compiled_programs(config.data.cache_dir)
    devices = Devices(config.parallel, config.num_devices, config.model_devices)
    encoders: dict[str, PreparedEncoder] = {}
    features: dict[str, TextFeatures | ImageFeatures] = {}
    with processes.first_goes_first("prepare"):
        data = prepare(config.data)
        if reads_content(config.model.streams):
            for name in config.content.modalities:
                prepared = _prepare_content(name, data, config)
                if isinstance(prepared, TextFeatures | ImageFeatures):
                    features[name] = prepared
                else:
                    encoders[name] = prepared
    catalogue = devices.catalogue(data.num_items)
    fill = ((0, catalogue.padded_classes - catalogue.num_classes), (0, 0))
    content = {name: devices.place(np.pad(f.table, fill), CLASSES) for name, f in features.items()}
    content |= {name: devices.place(prepared.inputs) for name, prepared in encoders.items()}
    keys = {name: part.key for name, part in (*features.items(), *encoders.items())}
    key = "-".join(keys[name] for name in sorted(keys))
    sequences = open_store(data, config.data.in_memory_gib)
    known, sampled = None, config.loss.next_item == "sampled"
    by_content = ranks_by_content(config.model.head, config.model.streams)
    asked = by_content or config.train.held_out_items > 0
    if asked or sampled:
        counts = training_counts(sequences, config, data.num_items)
        known = counts > 0 if asked else None
        if sampled:
            content[CHANCES] = devices.place(_chances(counts, config))
    if known is not None and by_content:
        own = known.copy()
        own[0] = not config.corrections.exclude_padding_class  # where it competes it is trained
        content[KNOWN] = devices.place(np.pad(own, fill[0]), CLASSES)
    model = make_model(config, catalogue, devices.rows_axis)
    return Experiment(config, data, sequences, content, key, encoders, known, devices, model)


def _chances(counts: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
    """With which items are drawn; those that do not compete, and padding, never are."""
    competes = np.arange(counts.size) > 0
    if ranks_by_content(config.model.head, config.model.streams):
        competes &= counts > 0
    if not competes.any():
        raise UserError(NOTHING_TO_TRAIN_ON)
    return cumulative_chances(np.where(competes, counts, -1), config.loss.negative_power)


def _prepare_content(
    modality: str, data: PreparedData, config: ml_collections.ConfigDict
) -> TextFeatures | ImageFeatures | PreparedEncoder:
    """Features by a frozen encoder, or an encoder that is trained."""
    settings, cache_dir = config.content[modality], config.data.cache_dir
    if modality == "text":
        if settings.trained_layers:
            return prepare_text(data.texts, settings, cache_dir, config.seed)
        return text_features(data.texts, settings, cache_dir)
    images = (data.images, config.data.raw_dir, settings, cache_dir)
    return prepare_images(*images) if settings.trained_stages else image_features(*images)


def make_model(
    config: ml_collections.ConfigDict, catalogue: Catalogue, rows_axis: Axis = None
) -> TSSR:
    """The model of section `model` of the config, as one device runs it."""
    fields = config.model.to_dict()
    streams = tuple(fields.pop("streams"))
    del fields["id_dropout"]  # the train step's
    return TSSR(
        catalogue=catalogue,
        streams=streams,
        modalities=tuple(config.content.modalities),
        fusion=config.content.fusion,
        rows_axis=rows_axis,
        **fields,
    )


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
            f"The content features are not those of the run in {workdir}: another encoder "
            "(--config.content.text.model_dir, --config.content.image.model_file) or other images "
            "make others. Give it the same ones, or train in another --workdir."
        )
