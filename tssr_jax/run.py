"""A run: a configuration with its data, its items' content, its devices and its model."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from etils import epath

from tssr_jax.adapting import adapted
from tssr_jax.config.choices import ranks_by_content, reads_content
from tssr_jax.config.files import read_signed, write_signed
from tssr_jax.config.saved import DATA_FILE
from tssr_jax.config.validation import validate_config
from tssr_jax.content.blocks import FeatureTable
from tssr_jax.content.categories import item_categories
from tssr_jax.content.distinct import PreparedEncoder
from tssr_jax.content.image_inputs import image_features, prepare_images
from tssr_jax.content.own_vectors import own_vectors
from tssr_jax.content.text_features import text_features
from tssr_jax.content.text_inputs import prepare_text
from tssr_jax.content.trained import TrainedEncoder, parameters_name
from tssr_jax.data_pipeline import digests
from tssr_jax.data_pipeline.cache import local_folder
from tssr_jax.data_pipeline.counts import training_counts
from tssr_jax.data_pipeline.gate_rows import least_length, trained_lengths
from tssr_jax.data_pipeline.input_pipeline import NOTHING_TO_TRAIN_ON
from tssr_jax.data_pipeline.prepare import PreparedData, prepare
from tssr_jax.data_pipeline.profiles import sizes
from tssr_jax.data_pipeline.splits import trained_before
from tssr_jax.data_pipeline.store import SequenceStore, open_store
from tssr_jax.data_pipeline.windows import held_out_items
from tssr_jax.engine import IN_PROCESS, Engine
from tssr_jax.errors import UserError
from tssr_jax.losses.drawn_items import cumulative_chances
from tssr_jax.memory.co_occurrence import training_events
from tssr_jax.memory.popularity import popularity_around, popularity_before
from tssr_jax.memory.repeats import repeat_table
from tssr_jax.memory.scores import Memories, Neighbours
from tssr_jax.memory.tables import co_occurrence_table, scaled, word_table
from tssr_jax.models.content import Content, DistinctFeatures
from tssr_jax.models.init import init_params, make_model
from tssr_jax.models.shared_ids import sharing
from tssr_jax.models.tssr import TSSR
from tssr_jax.parallel import processes, sharding
from tssr_jax.parallel.devices import CLASSES, Devices
from tssr_jax.runtime import keep_compiled_programs


@dataclasses.dataclass(frozen=True)
class Run:
    """A configuration with its data and its model.

    Attributes:
      config: validated.
      data: the prepared data set; of a run that was carried to another machine, its items.
      users: returns what is known of the users; reads it once, when it is first asked for.
      has_users: tells whether that reads no raw files: a carried run may have no users here.
      counts: int64 [num_classes], how often training windows contain each class.
      content: a step's inputs about the items, on the devices in `CONTENT_LAYOUT`; features are
        float32 [padded_classes, feature_dim].
      content_key: identifies the content; "" without a content stream.
      encoders: content encoders that are trained, by modality.
      categories: see `ItemArrays`.
      known: bool [num_classes], items that a training window contains; None if it is not needed.
      devices: the devices of the run.
      model: the module, without its parameters.
    """

    config: ml_collections.ConfigDict
    data: PreparedData
    users: Callable[[], "Users"]
    has_users: Callable[[], bool]
    counts: np.ndarray
    content: Content
    content_key: str
    encoders: dict[str, PreparedEncoder]
    categories: tuple[str, ...]
    known: np.ndarray | None
    devices: Devices
    model: TSSR

    @property
    def sequences(self) -> SequenceStore:
        """The users' sequences, in memory or on disk."""
        return self.users().sequences

    @property
    def feature_widths(self) -> dict[str, int]:
        """Widths of the content features, by modality."""
        widths = {name: prepared.encoder.width for name, prepared in self.encoders.items()}
        for name, table in self.content.features.items():
            assert not isinstance(table, DistinctFeatures)
            widths[name] = table.shape[-1]
        return widths

    @property
    def trained(self) -> dict[str, TrainedEncoder]:
        """The encoders that are trained, by modality."""
        return {name: prepared.encoder for name, prepared in self.encoders.items()}

    @property
    def pretrained(self) -> dict[str, Any]:
        """Pretrained parameters of the trainable encoders, by the parameters' names."""
        return {parameters_name(name): p.params for name, p in self.encoders.items()}

    def initial_params(self) -> Any:
        """The model's parameters before training; zeros for an encoder that is trained."""
        return init_params(self.model, self.feature_widths, self.config.seed, self.pretrained)

    @property
    def abstract_params(self) -> Any:
        """Shapes of the parameters, with their shardings."""
        shapes = jax.eval_shape(self.initial_params)
        return sharding.placed_shapes(shapes, self.devices.shardings(self.params_layout))

    @functools.cached_property
    def params_layout(self) -> Any:
        """How the model's parameters lie on the devices."""
        return sharding.layout(jax.eval_shape(self.initial_params))


class Users(NamedTuple):
    """What is known of the users.

    Attributes:
      data: the prepared data set.
      sequences: its sequences, in memory or on disk.
    """

    data: PreparedData
    sequences: SequenceStore


class ItemArrays(NamedTuple):
    """What a model reads of the items, on the host.

    Attributes:
      counts: int64 [num_classes], how often training windows contain each class.
      features: float32 [num_classes, feature_dim] by modality, of encoders that are not trained.
      memories: None for a model without.
      neighbours: items that share id vectors; None for a model without.
      categories: names of the columns of features "categories", see `content.categories`.
    """

    counts: np.ndarray
    features: dict[str, np.ndarray]
    memories: Memories | None = None
    neighbours: Neighbours | None = None
    categories: tuple[str, ...] = ()


# Called with the users, what the model reads of items, and the key of their content.
OnArrays = Callable[[Users, ItemArrays, str], None]


def build_run(
    config: ml_collections.ConfigDict,
    on_arrays: OnArrays | None = None,
    engine: Engine = IN_PROCESS,
) -> Run:
    """Prepares data and features (or finds them in the cache) and makes the model.

    Args:
      config: of the run.
      on_arrays: called before the arrays go to the devices.
      engine: encodes texts and pictures, and counts memories.

    Raises:
      UserError: if the configuration or the data make no sense.
    """
    validate_config(config)
    config = adapted(config)
    keep_compiled_programs(local_folder(config.data.cache_dir))
    encoders: dict[str, PreparedEncoder] = {}
    features: dict[str, FeatureTable] = {}
    names: tuple[str, ...] = ()
    with processes.first_goes_first("prepare"):
        data = prepare(config.data)
        if reads_content(config.model.streams):
            for name in config.content.modalities:
                if name == "categories":
                    fields = config.content.category_fields
                    names, features[name] = item_categories(data.item_ids, config.data, fields)
                    continue
                prepared = _prepare_content(name, data, config, engine)
                if isinstance(prepared, FeatureTable):
                    features[name] = prepared
                else:
                    encoders[name] = prepared
    sequences = open_store(data, config)
    memories, neighbours = None, None
    if tuple(config.model.memory) and not config.baseline.kind:
        memories = _memories(config, data, sequences, engine)
    if config.model.id_neighbours and not config.baseline.kind:
        words = word_table(data.texts, config.memory, config.data.cache_dir, engine)
        neighbours = sharing(words, config.model.id_neighbours)
    arrays = ItemArrays(
        training_counts(sequences, config, data.num_items),
        {name: own.table for name, own in features.items()},
        memories,
        neighbours,
        names,
    )
    keys = {name: table.key for name, table in features.items()}
    keys |= {name: prepared.key for name, prepared in encoders.items()}
    key = "-".join(keys[name] for name in sorted(keys))
    users = Users(data, sequences)
    if on_arrays:
        on_arrays(users, arrays, key)
    return assembled(config, data, lambda: users, arrays, key, encoders)


def assembled(  # noqa: PLR0917
    config: ml_collections.ConfigDict,
    data: PreparedData,
    users: Callable[[], Users],
    arrays: ItemArrays,
    content_key: str,
    encoders: Mapping[str, PreparedEncoder] = MappingProxyType({}),
    *,
    has_users: Callable[[], bool] = lambda: True,
) -> Run:
    """The run of these parts: places arrays on the devices, and makes the model."""
    devices = Devices(config.parallel, config.num_devices, config.model_devices)
    catalogue = devices.catalogue(data.num_items)
    fill = ((0, catalogue.padded_classes - catalogue.num_classes), (0, 0))
    content = Content(
        {name: devices.place(np.pad(f, fill), CLASSES) for name, f in arrays.features.items()},
        {name: devices.place(prepared.inputs) for name, prepared in encoders.items()},
        memories=devices.place(arrays.memories),
        neighbours=devices.place(arrays.neighbours),
    )
    by_content = ranks_by_content(config.model.head, config.model.streams)
    asked = by_content or config.train.held_out_items > 0
    known = arrays.counts > 0 if asked else None
    if config.loss.next_item == "sampled":
        chances = devices.place(_chances(arrays.counts, config))
        content = dataclasses.replace(content, chances=chances)
    if known is not None and by_content:
        own = known.copy()
        own[0] = not config.corrections.exclude_padding_class  # where it competes it is trained
        content = dataclasses.replace(content, known=devices.place(np.pad(own, fill[0]), CLASSES))
    return Run(
        config=config,
        data=data,
        users=users,
        has_users=has_users,
        counts=arrays.counts,
        content=content,
        content_key=content_key,
        encoders=dict(encoders),
        categories=arrays.categories,
        known=known,
        devices=devices,
        model=make_model(
            *(config, catalogue, devices.rows_axis),
            num_events=len(data.events),
            profile_sizes=sizes(data.profile_fields),
        ),
    )


def _memories(
    config: ml_collections.ConfigDict,
    data: PreparedData,
    sequences: SequenceStore,
    engine: Engine,
) -> Memories:
    """What the model reads; tables have a mean highest likeness of 1."""
    names, tables, popularity = tuple(config.model.memory), {}, None
    held_out = held_out_items(config, data.num_items)
    events = training_events(sequences, held_out)
    if "co_occurrence" in names:
        settings, cache_dir = config.memory, config.data.cache_dir
        table = co_occurrence_table(events, data.num_items, settings, cache_dir, engine)
        tables["co_occurrence"] = scaled(table)
    if "words" in names:
        words = word_table(data.texts, config.memory, config.data.cache_dir, engine)
        tables["words"] = scaled(words)
    # Without the interactions that the gate learns to predict.
    trained = training_events(sequences, held_out, trained_lengths(sequences, config))
    if "repeats" in names:
        tables["repeats"] = scaled(repeat_table(events, data.num_items))
    if "popularity" in names:
        by_time = config.evaluate.split == "global_time"
        count = popularity_before if by_time else popularity_around
        popularity = count(trained.items, trained.minutes, data.num_items)
    frequency = np.log1p(np.bincount(trained.items, minlength=data.num_items + 1))
    frequency = (frequency - frequency[1:].mean()).astype(np.float32)
    decay = np.array(config.memory.decay, np.float32)
    return Memories(tables, popularity, frequency, decay, least_length(sequences, config))


def _chances(counts: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
    """Cumulative weights of drawn items; non-competing items and padding are never drawn."""
    competes = np.arange(counts.size) > 0
    if ranks_by_content(config.model.head, config.model.streams):
        competes &= counts > 0
    if not competes.any():
        raise UserError(NOTHING_TO_TRAIN_ON)
    return cumulative_chances(competes)


def _prepare_content(
    modality: str, data: PreparedData, config: ml_collections.ConfigDict, engine: Engine
) -> FeatureTable | PreparedEncoder:
    """Features by a frozen encoder, or the user's own; or an encoder that is trained."""
    if modality == "vectors":
        return own_vectors(data.item_ids, config.data)
    settings, cache_dir = config.content[modality], config.data.cache_dir
    if modality == "text":
        if settings.trained_layers:
            return prepare_text(data.texts, settings, cache_dir, config.seed)
        return text_features(data.texts, settings, cache_dir, engine)
    make = prepare_images if settings.trained_stages else image_features
    return make(data.images, config.data.raw_dir, settings, cache_dir, engine)


def save_data_report(
    users: Users, config: ml_collections.ConfigDict, content_key: str, workdir: epath.Path
) -> None:
    """Writes workdir/data.json: which data the run was trained on.

    Args:
      users: the data.
      config: of the run.
      content_key: identifies the content.
      workdir: the run's folder.
    """
    data = users.data
    report = {
        "trained_before": trained_before(users.sequences.splits, config.evaluate.held_out),
        "key": data.key,
        "records": digests.of_records(data.folder),
        "num_users": data.num_users,
        "num_items": data.num_items,
        "features_key": content_key,
        "report": data.report,
    }
    write_signed(workdir / DATA_FILE, report)


def identity_of(workdir: epath.Path) -> dict[str, str]:
    """What the parts of a run's folder have in common: its data, by key and records; its content.

    Empty where there is no data.json.
    """
    path = workdir / DATA_FILE
    saved = read_signed(path) if path.exists() else {}
    return {name: saved[name] for name in ("key", "records", "features_key") if name in saved}


def are_alike(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two identities are of one run's data; what one of them lacks is not compared.

    Data are the same if the raw files are, or if their prepared records are.
    """
    same = {name: one[name] == other[name] for name in one.keys() & other.keys()}
    by_data = [same[name] for name in ("key", "records") if name in same]
    return same.get("features_key", True) and (any(by_data) or not by_data)


def require_same_data(data: PreparedData, content_key: str | None, workdir: epath.Path) -> None:
    """Raises UserError if the run in `workdir` was trained on other data.

    Data are the same if the raw files are, or if their prepared records are.

    Args:
      data: the prepared data set.
      content_key: identifies the content; None if only users and items count.
      workdir: the run's folder.
    """
    path = workdir / DATA_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist; the run in {workdir} was never started properly.")
    saved = read_signed(path)
    same = saved["key"] == data.key or saved.get("records") == digests.of_records(data.folder)
    if not same:
        raise UserError(
            f"The data is not that of the run in {workdir}: it was trained on data set "
            f"{saved['key']} ({saved['num_users']} users, {saved['num_items']} items), now it is "
            f"{data.key} ({data.num_users} users, {data.num_items} items). The raw files or the "
            "settings that filter them have changed; restore them, or train in another --workdir."
        )
    if content_key is not None and saved["features_key"] != content_key:
        raise UserError(
            f"The content features are not those of the run in {workdir}: another encoder "
            "(--config.content.text.model_dir, --config.content.image.model_file) or other images "
            "were used. Use the run's own, or train in another --workdir."
        )
