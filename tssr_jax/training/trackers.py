"""Sends a training's losses and metrics to Weights & Biases or MLflow, as they are written.

    tssr train --config.train.trackers="('wandb',)" ...

Where they go is set as these libraries want it: WANDB_PROJECT, WANDB_MODE=offline, ...;
MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ... A training that goes on continues its run there:
the ids of its runs are in workdir/trackers.json.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import ml_collections
from etils import epath

from tssr_jax.config.fields import flattened
from tssr_jax.config.files import write_json
from tssr_jax.errors import UserError, shown

FILE_NAME = "trackers.json"
_PROJECT = "tssr_jax"


class Tracker(Protocol):
    """A run of a tracker.

    Attributes:
      id: by which the tracker finds it again.
    """

    id: str

    def log(self, step: int, record: Mapping[str, float | int]) -> None:
        """Sends numbers of a step."""

    def test(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Sends the test metrics of the best parameters, those of a step."""

    def end(self, *, whole: bool) -> None:
        """Ends the run; `whole` if it was tested, and neither stopped nor failed."""


class _WeightsAndBiases:
    def __init__(self, workdir: epath.Path, fields: dict[str, Any], known: str | None):
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=workdir.name,
            id=known,
            resume="allow",
            config=fields,
            dir=None if "://" in str(workdir) else str(workdir),
        )
        self.id = self._run.id

    def log(self, step: int, record: Mapping[str, float | int]) -> None:
        self._run.log(dict(record), step=step)

    def test(self, step: int, metrics: Mapping[str, float | int]) -> None:
        # Not by `log`, whose steps only go up.
        self._run.summary.update({"best_step": step, **metrics})

    def end(self, *, whole: bool) -> None:
        self._run.finish(exit_code=0 if whole else 1)


class _MLflow:
    def __init__(self, workdir: epath.Path, fields: dict[str, Any], known: str | None):
        mlflow = importlib.import_module("mlflow")
        self._metric = mlflow.entities.Metric
        self._client = client = mlflow.MlflowClient()
        if known is not None:
            client.update_run(known, status="RUNNING")
            self.id = known
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = client.get_experiment_by_name(name)
        owner = experiment.experiment_id if experiment else client.create_experiment(name)
        self.id = client.create_run(owner, run_name=workdir.name).info.run_id
        for field, value in fields.items():
            client.log_param(self.id, field, value)

    def log(self, step: int, record: Mapping[str, float | int]) -> None:
        now = int(1_000 * time.time())
        # Its names have no "@".
        named = {name.replace("@", "_at_"): float(value) for name, value in record.items()}
        metrics = [self._metric(name, value, now, step) for name, value in named.items()]
        self._client.log_batch(self.id, metrics)

    def test(self, step: int, metrics: Mapping[str, float | int]) -> None:
        self.log(step, metrics)

    def end(self, *, whole: bool) -> None:
        self._client.set_terminated(self.id, "FINISHED" if whole else "KILLED")


_KINDS: dict[str, Callable[..., Tracker]] = {"wandb": _WeightsAndBiases, "mlflow": _MLflow}


class Trackers:
    """The trackers of a training. One that fails is left out from then on, which is told.

    Args:
      trackers: by name.
    """

    def __init__(self, trackers: dict[str, Tracker]):
        self._trackers, self._tested = trackers, False

    def log(self, step: int, record: Mapping[str, float | int]) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.log(step, record))

    def test(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """See `Tracker`."""
        named = {f"test/{name}": value for name, value in metrics.items()}
        self._each(lambda tracker: tracker.test(step, named))
        self._tested = True

    def end(self) -> None:
        """Ends all runs."""
        self._each(lambda tracker: tracker.end(whole=self._tested))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # whatever a library of others raises
                del self._trackers[name]
                print(f"{name} failed ({shown(error, 300)}): training goes on without it.")


def require_trackers(names: tuple[str, ...]) -> None:
    """Raises UserError if a tracker is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"--config.train.trackers names {name}, which is not installed: "
                f"pip install 'tssr-jax[{name}]'."
            )


@contextlib.contextmanager
def tracking(
    config: ml_collections.ConfigDict, workdir: epath.Path, *, silent: bool
) -> Iterator[Trackers]:
    """Begins, or goes on with, the runs of `config.train.trackers`; ends them afterwards.

    Args:
      config: of the run.
      workdir: the run's folder.
      silent: track nothing, because another process does.

    Raises:
      UserError: if a tracker can't begin a run.
    """
    names = () if silent else tuple(config.train.trackers)
    path = workdir / FILE_NAME
    try:
        known = json.loads(path.read_text()) if names and path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path} is damaged ({shown(error)}): remove it.") from error
    begun: dict[str, Tracker] = {}
    trackers = Trackers(begun)
    try:
        for name in names:
            try:
                begun[name] = _KINDS[name](workdir, flattened(config), known.get(name))
            except Exception as error:  # whatever a library of others raises
                again = f" Or remove {path}, to begin a new run there." if name in known else ""
                raise UserError(
                    f"--config.train.trackers: {name} can't begin a run ({shown(error, 300)}). Set "
                    f"it up, or leave it out.{again}"
                ) from error
        if names:
            write_json(path, known | {name: tracker.id for name, tracker in begun.items()})
        yield trackers
    finally:
        trackers.end()
