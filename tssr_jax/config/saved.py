"""The copy of a run's configuration in its workdir."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import ml_collections
from etils import epath

from tssr_jax.config import default
from tssr_jax.config.fields import flattened
from tssr_jax.config.files import read_signed, write_signed
from tssr_jax.config.validation import validate_config
from tssr_jax.errors import UserError, shown

FILE_NAME = "config.json"
# Which data a run was trained on. Folders of studies and searches have none.
DATA_FILE = "data.json"
# Fields that do not affect results: devices, places, and the search space.
WITHOUT_EFFECT = (
    "parallel",
    "num_devices",
    "model_devices",
    "loss.negatives",
    "data.cache_dir",
    "data.in_memory_gib",
    "search.space",
    "train.trackers",
)
# Paths of input files. Their contents are compared later, by hash.
PLACES = ("data.raw_dir", "content.text.model_dir", "content.image.model_file")
# Fields that may differ between the processes of one training.
OF_A_MACHINE = (*PLACES, "data.cache_dir", "data.in_memory_gib", "search.space")
# Fields that may differ between two calls for one workdir: also paths, and how long to train.
MAY_CHANGE = (
    *WITHOUT_EFFECT,
    *PLACES,
    "train.num_epochs",
    "train.early_stopping_patience",
)


# Fields of older runs that are gone, with the only value that this version still supports.
_REMOVED = {
    "content.image.augment": False,
    "content.image.batch_statistics": "frozen",
    "content.image.train_from_step": 0,
    "content.image.layer_decay": 0.9,
    "content.text.layer_decay": 0.9,
    "content.text.lora_alpha": 16.0,
    "content.text.train_from_step": 0,
    "content.text.whitening": False,
    "loss.hard_negatives": "none",
    "loss.negative_power": 0.0,
    "loss.queue_size": 0,
    "model.embedding_dropout_rate": 0.0,
    "model.norm": "post",
    "model.residual_init": 1e-8,
    "model.score_temperature": 0.0,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.eps": 1e-8,
}
# Fields that older runs have and that did nothing without a value of another field.
_REMOVED_WITHOUT_EFFECT = (
    "baseline.decay",
    "baseline.neighbours",
    "baseline.shrinkage",
    "loss.items_per_bucket",
    "loss.num_hard_negatives",
    "memory.floor",
    "memory.time_scale",
    "search.sampler",
)


def save_config(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Writes workdir/config.json."""
    write_signed(workdir / FILE_NAME, _with_whole_paths(config).to_dict())


def _with_whole_paths(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration with absolute paths: a run may be used from another folder."""
    fields = flattened(config)
    whole = config.copy_and_resolve_references()
    for name in PLACES:
        if (path := fields[name]) and "://" not in path and not path.startswith("~"):
            whole.update_from_flattened_dict({name: str(Path(path).absolute())})
    return whole


def require_no_run(folder: epath.Path) -> None:
    """Raises UserError if a folder, of several trainings to be, is a run's own."""
    if (folder / DATA_FILE).exists():
        raise UserError(f"--workdir={folder} is the folder of a run. Name another folder.")


def load_config(workdir: epath.Path, raw_dir: str | None = None) -> ml_collections.ConfigDict:
    """Reads workdir/config.json.

    Args:
      workdir: the run's folder.
      raw_dir: where its raw files are now; None if they have not moved.

    Raises:
      UserError: if there is no such file, it has changed since it was written, or it has unknown
        fields.
    """
    path = workdir / FILE_NAME
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: {workdir} is not the workdir of a run. Train first: "
            "tssr train --config=ml100k --workdir=DIR"
        )
    fields = _without_removed(flattened(read_signed(path)), path)
    config = default.get_config()
    unknown = fields.keys() - flattened(config).keys()
    if unknown:
        raise UserError(
            f"{path} has the field {shown(min(unknown))!r}, which this version of the program does "
            "not know. Use the version that wrote it."
        )
    try:
        config.update_from_flattened_dict(
            {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        )
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a configuration of this version of the program ({shown(error)})."
        ) from error
    if raw_dir is not None:
        config.data.raw_dir = raw_dir
    validate_config(config)
    return config


def _without_removed(fields: dict[str, Any], path: epath.Path) -> dict[str, Any]:
    """Removes fields of a saved configuration that this version no longer has.

    Raises:
      UserError: if one of them had a value that this version can't reproduce.
    """
    for name, same in _REMOVED.items():
        if fields.get(name, same) != same:
            raise UserError(
                f"{path} has {name}={shown(repr(fields[name]))}, which this version no longer has "
                "(CHANGELOG.md, Removed): use the version that trained the run."
            )
    if fields.get("baseline.kind") == "item_knn" and "baseline.decay" in fields:
        raise UserError(
            f"{path} is of an item-kNN without times and words, which this version no longer has "
            "(CHANGELOG.md, Changed): evaluate the baseline again, in another --workdir."
        )
    reads_memory = fields.get("model.memory") or fields.get("baseline.kind") == "item_knn"
    if "memory.time_scale" in fields and reads_memory:
        raise UserError(
            f"{path} is of a memory whose pairs fade exponentially, which this version no longer "
            "has (CHANGELOG.md, Changed): train it again, in another --workdir."
        )
    if "train.reorder_rate" in fields:
        fields["train.time_noise"] = (0.0, 1e6) if fields.pop("train.reorder_rate") else ()
    gone = {*_REMOVED, *_REMOVED_WITHOUT_EFFECT}
    return {name: value for name, value in fields.items() if name not in gone}


def require_same_config(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    may_change: Collection[str] = MAY_CHANGE,
) -> None:
    """Raises UserError if workdir/config.json differs in a field that may not change."""
    saved = flattened(read_signed(workdir / FILE_NAME))
    if rate := saved.get("train.reorder_rate"):
        print(
            f"{workdir} was trained with train.reorder_rate={rate}, which this version no longer "
            "has. It resumes with --config.train.time_noise=(0.0, 1e6), the closest setting."
        )
    kept, given = (flattened(_with_whole_paths(one)) for one in (load_config(workdir), config))
    different = [
        f"{name} (there {kept[name]!r}, now {given[name]!r})"
        for name in given
        if kept[name] != given[name] and name not in may_change
    ]
    if different:
        raise UserError(
            f"{workdir} holds a run with another configuration; it differs in "
            f"{', '.join(different)}. Choose another --workdir, or give the same configuration to "
            "resume that run."
        )
