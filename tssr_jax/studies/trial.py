"""One training of a study: its configuration, and where it lies."""

import dataclasses
import json
import re
from collections.abc import Iterable
from typing import Any

import ml_collections
from etils import epath

from tssr_jax.config.fields import flattened
from tssr_jax.config.saved import FILE_NAME, WITHOUT_EFFECT, require_same_config, save_config
from tssr_jax.config.validation import validate_config
from tssr_jax.errors import UserError
from tssr_jax.studies.designs import Study, Variant

RESULT_FILE = "result.json"
LOG_FILE = "log.txt"
RUN_FOLDER = "run"
REFIT_FOLDER = "refit"
TRIALS_FOLDER = "trials"
SEARCHES_FOLDER = "searches"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A variant of a study with one seed.

    Attributes:
      variant: its name.
      changes: values of fields that the variant sets, its settings included, by dotted names.
      config: whole.
      folder: holds the configuration, the log, the run's workdir, and in the end the result.
      refit: whether its run is also refitted, see `training.refit`, in another workdir.
      workdir: name of the workdir that is looked at, its training's or that of its refit.
    """

    variant: str
    changes: dict[str, Any]
    config: ml_collections.ConfigDict
    folder: epath.Path
    refit: bool = False
    workdir: str = RUN_FOLDER

    @property
    def name(self) -> str:
        """The trial's name for people."""
        return f"{self.variant}, seed {self.config.seed}"

    @property
    def run(self) -> epath.Path:
        """The workdir that is looked at."""
        return self.folder / self.workdir

    @property
    def has_refit(self) -> bool:
        """Whether it has ended with a refit."""
        return "refit" in (self.result() or {"metrics": {}})["metrics"]

    @property
    def done(self) -> bool:
        """Whether nothing is left to run."""
        return self.has_refit if self.refit else self.result() is not None

    def refitted(self) -> "Trial":
        """The trial with its refit's workdir and test metrics."""
        return dataclasses.replace(self, workdir=REFIT_FOLDER)

    def prepare(self) -> None:
        """Writes its configuration; raises UserError if the folder has another one.

        Devices and the cache may be others than before, until there is a result.
        """
        if (self.folder / FILE_NAME).exists():
            require_same_config(self.config, self.folder, WITHOUT_EFFECT)
        if self.result() is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_config(self.config, self.folder)

    def result(self) -> dict[str, Any] | None:
        """The result of its process; None before it has ended."""
        path = self.folder / RESULT_FILE
        result = json.loads(path.read_text()) if path.exists() else None
        if result and self.workdir == REFIT_FOLDER:
            result["metrics"]["test"] = result["metrics"]["refit"]
        return result

    def record(self) -> dict[str, Any] | None:
        """The result with variant, seed and changes: a line of results.jsonl."""
        result = self.result()
        if result is None:
            return None
        own = {"variant": self.variant, "seed": self.config.seed, "changes": self.changes}
        return own | {"folder": self.folder.name} | result


def require_validation(config: ml_collections.ConfigDict) -> None:
    """Raises UserError if trials would have no validation, by which their epochs are chosen."""
    if "validation" not in config.evaluate.held_out:
        raise UserError(
            f"--config.evaluate.held_out is {tuple(config.evaluate.held_out)}; studies and "
            "searches choose by validation. `tssr study --refit` trains on its targets afterwards."
        )


def make_trials(
    study: Study,
    config: ml_collections.ConfigDict,
    seeds: Iterable[int],
    workdir: epath.Path,
    *,
    refit: bool = False,
) -> list[Trial]:
    """All trials, seed by seed, so that a study that is stopped has compared all variants.

    Raises:
      UserError: if a variant's configuration makes no sense, or a field that it needs is not set.
    """
    fields = flattened(config)
    for name in study.needs:
        if not fields[name]:
            raise UserError(
                f"This study needs --config.{name} (tssr_jax/config/default.py explains it)."
            )
    trials = []
    for seed in seeds:
        for variant in study.variants_of(config):
            own = configured(config, variant, seed)
            validate_config(own)
            folder = workdir / TRIALS_FOLDER / f"{folder_name(variant.name)}-seed{seed}"
            trials.append(Trial(variant.name, variant.values, own, folder, refit))
    return trials


def configured(
    config: ml_collections.ConfigDict, variant: Variant, seed: int
) -> ml_collections.ConfigDict:
    """A variant's whole configuration with a seed, which also orders ties in time."""
    own = config.copy_and_resolve_references()
    own.update_from_flattened_dict({**variant.values, "seed": seed})
    own.data.tie_seed += seed
    return own


def folder_name(variant: str) -> str:
    """A variant's name as a valid folder name."""
    return re.sub(r"\W+", "_", variant).strip("_")
