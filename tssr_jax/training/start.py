"""What a training goes on from: its own newest checkpoint, another run, or nothing."""

import datetime
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections
import optax
from etils import epath

from tssr_jax.checkpoints.checkpointer import Checkpointer, Progress
from tssr_jax.config.files import read_signed
from tssr_jax.config.saved import DATA_FILE, load_config
from tssr_jax.data_pipeline.splits import trained_before
from tssr_jax.errors import UserError
from tssr_jax.evaluation.evaluate import restore_best
from tssr_jax.run import Run
from tssr_jax.training.optimizer import optimizer_of
from tssr_jax.training.state import (
    TrainState,
    abstract_state,
    initial_state,
    params_of,
    require_same_sections,
    with_params,
)
from tssr_jax.training.warm_start import carried_params, found_by_name


class Start(NamedTuple):
    """The start of a training.

    Attributes:
      state: the train state, on the devices.
      progress: the state of the loop.
      optimizer: the optimiser of the train state.
      layout: layout of the train state on the devices.
    """

    state: TrainState
    progress: Progress
    optimizer: optax.GradientTransformation
    layout: Any


def _require_unread_targets(run: Run, other: epath.Path, field: str) -> None:
    """Raises UserError if the other run was trained on what this one is measured by.

    With leave-one-out the other run's data must not end later, and the other run must have held out
    all that this one does: the newest items of its users then, and those of users without new
    interactions. With a split by time the other run must not have read the date from which on this
    one is measured.

    Args:
      run: this run.
      other: the other run's workdir.
      field: names it in errors.
    """
    theirs, held_out = load_config(other), set(run.config.evaluate.held_out)
    if not held_out:
        return
    cuts = theirs.evaluate.cuts if theirs.evaluate.split == "global_time" else ()
    if first := trained_before(run.sequences.splits, held_out):
        before = _trained_before(other, theirs)
        if before > first:
            raise UserError(
                f"{field} was trained on interactions before {before}, and this run is measured "
                f"from {first} on: its targets would be training data. Name a later date "
                "(--config.evaluate.cuts), or begin from a run that was trained on less."
            )
        unread = len(cuts) == 1 and "validation" in theirs.evaluate.held_out
        if "validation" in held_out and len(run.config.evaluate.cuts) == 1 and not unread:
            raise UserError(
                f"{field} was trained on the users that this run validates by: with one date in "
                "--config.evaluate.cuts these are a tenth of all users. Name two dates, or begin "
                "from a run that was split by one date and held them out, too."
            )
        return
    if less := held_out - set(theirs.evaluate.held_out):
        raise UserError(
            f"{field} was trained on its {' and '.join(sorted(less))} targets, too "
            "(`tssr refit`), so this run's targets may be training data. Begin from the run "
            "that it repeats, or split by time (--config.evaluate.split=global_time)."
        )
    if theirs.evaluate.split == "global_time":
        raise UserError(
            f"{field} was split by time, so it was trained on the newest items of many users. "
            "They are the targets of this run (evaluate.split=leave_one_out). "
            "Split this run by time, too: --config.evaluate.split=global_time, and "
            "--config.evaluate.cuts with later dates."
        )
    newest = _last_date(read_signed(other / DATA_FILE)["report"], f"The data of {other}")
    if newest > (ours := _last_date(run.data.report, "The data of this run")):
        raise UserError(
            f"{field} was trained on data up to {newest}, and this run's data ends on {ours}. That "
            "run may have learnt this run's validation and test targets. Begin from a run on "
            "earlier data."
        )


def _trained_before(other: epath.Path, theirs: ml_collections.ConfigDict) -> str:
    """The date, UTC, from which on a run's training read nothing.

    Args:
      other: the run's workdir.
      theirs: its configuration.

    Raises:
      UserError: if its data was prepared by a version that kept no dates.
    """
    saved, evaluate = read_signed(other / DATA_FILE), theirs.evaluate
    if before := saved.get("trained_before"):
        return str(before)
    by_time = evaluate.split == "global_time" and evaluate.held_out
    if by_time and "trained_before" not in saved and isinstance(evaluate.cuts[0], str):
        return str(evaluate.cuts[0 if "validation" in evaluate.held_out else -1])
    return _after(_last_date(saved["report"], f"The data of {other}"))


def _last_date(report: Mapping[str, Any], name: str) -> str:
    """The date of the newest interaction; raises UserError where a report has none."""
    if "last_date" not in report:
        raise UserError(
            f"{name} was prepared by an older version, which kept no dates, so nobody can tell "
            "whether it is earlier than this run's. Train that run again."
        )
    return str(report["last_date"])


def _after(date: str) -> str:
    """The day after."""
    return (datetime.date.fromisoformat(date) + datetime.timedelta(days=1)).isoformat()


def find_start(run: Run, checkpointer: Checkpointer) -> Start:
    """Looks for the state that a training goes on from.

    In this order:

    1. the newest whole checkpoint of the run's own workdir;
    2. the best parameters of the run in `config.train.warm_start`, see `carried_params`;
    3. the best parameters of the run in `config.train.init_from`, but for those of its items;
    4. random parameters.

    Raises:
      UserError: if a checkpoint does not fit, or a field names no run of such a model.
    """
    optimizer = optimizer_of(run)
    # Shapes only: where a checkpoint is restored, there is no room for a second state.
    expected, layout = abstract_state(run, optimizer)
    restored = checkpointer.restore_newest(*expected.for_checkpoint())
    if restored is not None:
        params, rest, progress = restored
        return Start(TrainState.from_checkpoint(params, rest), progress, optimizer, layout)
    state, _ = initial_state(run, optimizer)
    for name in ("warm_start", "init_from"):
        if not run.config.train[name]:
            continue
        other = epath.Path(run.config.train[name]).expanduser()
        field = f"--config.train.{name}={other}"
        require_same_sections(run.config, load_config(other), field)
        other_run, others, _ = restore_best(other, encoders=True)
        # A run on other data may initialise anything.
        if name == "warm_start" or other_run.data.report["origin"] == run.data.report["origin"]:
            _require_unread_targets(run, other, field)
        others = found_by_name(run, other_run, others, field)
        if name == "warm_start":
            others = carried_params(run, other_run, others)
        params = params_of(state, others, field, items=name == "warm_start")
        state = with_params(state, params)
    return Start(state, Progress(), optimizer, layout)
