"""The copy of a run's configuration in its workdir."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ml_collections
from etils import epath

from tssr_jax.config import default
from tssr_jax.config.fields import flattened
from tssr_jax.config.files import write_json
from tssr_jax.config.validation import validate_config
from tssr_jax.errors import UserError

FILE_NAME = "config.json"
# What changes no result: devices, places, and what other trials are like.
WITHOUT_EFFECT = (
    "parallel",
    "num_devices",
    "model_devices",
    "loss.negatives",
    "data.cache_dir",
    "data.in_memory_gib",
    "search.space",
    "search.sampler",
)
# Files that are read: that they hold the same is seen later, by what is in them.
PLACES = ("data.raw_dir", "content.text.model_dir", "content.image.model_file")
# What may differ between two calls for one workdir: also where these lie, and how long to go on.
MAY_CHANGE = (
    *WITHOUT_EFFECT,
    *PLACES,
    "train.num_epochs",
    "train.early_stopping_patience",
)


# Fields that older runs have, with the only value that is still what this version does.
_REMOVED = {
    "content.image.augment": False,
    "content.image.batch_statistics": "frozen",
    "content.image.train_from_step": 0,
    "content.text.train_from_step": 0,
    "content.text.whitening": False,
    "model.embedding_dropout_rate": 0.0,
    "model.norm": "post",
    "model.score_temperature": 0.0,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.eps": 1e-8,
}
# Fields that older runs have and that did nothing without a value of another field.
_REMOVED_WITHOUT_EFFECT = ("loss.items_per_bucket",)


def save_config(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Writes workdir/config.json."""
    write_json(workdir / FILE_NAME, _with_whole_paths(config).to_dict())


def _with_whole_paths(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Paths from the root on: a run may be asked from another folder."""
    fields = flattened(config)
    whole = config.copy_and_resolve_references()
    for name in PLACES:
        if (path := fields[name]) and "://" not in path and not path.startswith("~"):
            whole.update_from_flattened_dict({name: str(Path(path).absolute())})
    return whole


def load_config(workdir: epath.Path, raw_dir: str | None = None) -> ml_collections.ConfigDict:
    """Reads workdir/config.json.

    Args:
      workdir: of a run.
      raw_dir: where its raw files lie now; None if they lie where they lay.

    Raises:
      UserError: if there is no such file, or it has unknown fields.
    """
    path = workdir / FILE_NAME
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: {workdir} is not the workdir of a run. Train first: "
            "tssr train --config=tuned_long:ml100k --workdir=DIR"
        )
    try:
        fields = _without_removed(flattened(json.loads(path.read_text())), path)
        config = default.get_config()
        config.update_from_flattened_dict(
            {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        )
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a configuration of this version of the program ({error})."
        ) from error
    if raw_dir is not None:
        config.data.raw_dir = raw_dir
    validate_config(config)
    return config


def _without_removed(fields: dict[str, Any], path: epath.Path) -> dict[str, Any]:
    """Fields of a saved configuration without those that are gone.

    Raises:
      UserError: if one of them had a value that this version can't reproduce.
    """
    for name, same in _REMOVED.items():
        if fields.get(name, same) != same:
            raise UserError(
                f"{path} has {name}={fields[name]!r}, which this version no longer has "
                "(CHANGELOG.md, Removed): use the version that trained the run."
            )
    gone = {*_REMOVED, *_REMOVED_WITHOUT_EFFECT}
    return {name: value for name, value in fields.items() if name not in gone}


def require_same_config(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    may_change: Collection[str] = MAY_CHANGE,
) -> None:
    """Raises UserError if workdir/config.json differs in a field that may not change."""
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
