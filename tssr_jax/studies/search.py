"""Searches settings by validation NDCG@10, with Optuna: `tssr search`.

Each trial is a process, as in a study. Test data plays no part: the test metrics of a trial are
written, but not read.
"""

import functools
import hashlib
import json
import shlex
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import ml_collections
from etils import epath
from rich.console import Console
from rich.table import Column, Table

from tssr_jax.adapting import adapted
from tssr_jax.config.fields import flattened
from tssr_jax.config.files import write_json, write_whole
from tssr_jax.config.saved import (
    FILE_NAME,
    WITHOUT_EFFECT,
    load_config,
    require_same_config,
    save_config,
)
from tssr_jax.config.validation import validate_config
from tssr_jax.errors import UserError, shown
from tssr_jax.reporting import make_console, make_progress
from tssr_jax.studies.budget import require_same_budget
from tssr_jax.studies.slots import (
    UNHURRIED,
    News,
    Pace,
    Validations,
    open_slots,
    run_trial,
    validations,
)
from tssr_jax.studies.space import Dimension, counts, parse_space
from tssr_jax.studies.trial import TRIALS_FOLDER, Trial, require_validation

JOURNAL_FILE = "search.log"
BEST_FILE = "best.json"
OBJECTIVE = "ndcg@10"
# Pruning: trials that end by themselves first, and epochs that each trial has.
_WHOLE_TRIALS = 5
_GRACE = 5


def search(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    num_trials: int,
    pace: Pace = UNHURRIED,
) -> dict[str, Any]:
    """Runs trials until there are `num_trials`, then prints the best and writes best.json.

    The first trial has the values of `config`. A second call with the same workdir continues, and
    runs stopped trials first. Fields that `config` does not read are skipped.

    Args:
      config: the configuration that trials change, as `config.search` says.
      workdir: folder of the search.
      num_trials: total number of trials.
      pace: how trials are run.

    Returns:
      The best trial's values, by dotted names of fields.

    Raises:
      UserError: if Optuna is not installed, the space makes no sense, `workdir` holds a search of
        another configuration, or no trial succeeds.
    """
    console = make_console()
    config = adapted(config, console.print)
    dimensions = _dimensions(config, console)
    study = _open(config, workdir, pace)
    if not study.trials:
        _try_first(study, dimensions, config, console)
    with make_progress(console) as progress, open_slots(pace) as slots:
        task = progress.add_task("Search", total=num_trials, message="")
        news = News(lambda line: progress.update(task, message=line))
        running: dict[Future[Any], tuple[Any, Trial, _Curve]] = {}
        # The same values have the same folder: the second trial waits, and finds the result.
        locks: defaultdict[epath.Path, threading.Lock] = defaultdict(threading.Lock)
        while (done := len(_finished(study))) < num_trials:
            progress.update(task, completed=done)
            while len(running) < min(slots.number, num_trials - done):
                asked = study.ask()
                trial = _make_trial(asked, dimensions, config, workdir)
                curve = _Curve(asked)
                run = functools.partial(
                    run_trial,
                    minutes=pace.minutes,
                    tell=news.of(trial.variant),
                    slots=slots,
                    hopeless=curve.is_hopeless,
                )
                future = slots.submit(_value, trial, curve, run, locks[trial.folder], console)
                running[future] = asked, trial, curve
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                asked, trial, curve = running.pop(future)
                _tell(study, asked, trial, future.result(), curve, console)
    complete = [t for t in study.trials if t.state.name == "COMPLETE"]
    if not complete:
        raise UserError(
            f"No trial succeeded; what they said is above, and in {workdir / 'trials'}/*/log.txt."
        )
    best = max(complete, key=lambda t: t.value)
    found = {"validation": {OBJECTIVE: best.value}, "changes": best.params, "trials": len(complete)}
    write_json(workdir / BEST_FILE, found)
    _print_best(complete, console)
    return {d.field: d.value_of(best.params[d.field]) for d in dimensions}


def best_before(config: ml_collections.ConfigDict, workdir: epath.Path) -> dict[str, Any] | None:
    """The result of an ended search in this folder, as `search` returns it; None without one."""
    if not (workdir / BEST_FILE).exists():
        return None
    _claim(config, workdir)
    found = json.loads((workdir / BEST_FILE).read_text())["changes"]
    return {d.field: d.value_of(found[d.field]) for d in parse_space(config) if d.field in found}


def _dimensions(config: ml_collections.ConfigDict, console: Console) -> list[Dimension]:
    dimensions = parse_space(config)
    unread = [d.field for d in dimensions if not counts(d.field, config)]
    if len(unread) == len(dimensions):
        raise UserError(
            f"--config.search.space has {', '.join(unread)}; this configuration reads none of them."
        )
    if unread:
        console.print(f"Not searched: this configuration does not read {', '.join(unread)}.")
    return [d for d in dimensions if d.field not in unread]


class _Curve:
    """Tells Optuna the validations of one trial as they come, and asks whether to go on.

    Attributes:
      pruned: what is told of a trial that was ended early; "" if it was not.

    Args:
      asked: Optuna's trial.
    """

    def __init__(self, asked: Any):
        self._asked, self._told = asked, 0
        self.pruned = ""

    def tell(self, so_far: Validations) -> Validations:
        """Tells Optuna the validations that it does not know yet, and returns them."""
        new, self._told = so_far[self._told :], max(self._told, len(so_far))
        for epoch, value in new:
            self._asked.report(value, round(epoch))
        return new

    def is_hopeless(self, so_far: Validations) -> bool:
        """Whether the search's pruner ends the trial after these validations."""
        new = self.tell(so_far)
        if new and self._asked.should_prune():
            epoch, value = new[-1]
            self.pruned = f"ended early, at epoch {epoch:g}, validation {OBJECTIVE} {value:.4f}"
        return bool(self.pruned)


def _tell(  # noqa: PLR0917
    study: Any, asked: Any, trial: Trial, value: float | None, curve: _Curve, console: Console
) -> None:
    """Tells Optuna, and the user, what became of a trial."""
    from optuna.trial import TrialState  # noqa: PLC0415 - an extra

    if value is not None:
        state, outcome = TrialState.COMPLETE, f"validation {OBJECTIVE} {value:.4f}"
    elif curve.pruned:
        state, outcome = TrialState.PRUNED, curve.pruned
    else:
        state, outcome = TrialState.FAIL, "failed"
    study.tell(asked, value, state=state)
    changes = ", ".join(f"{field}={value}" for field, value in trial.changes.items())
    console.print(f"trial {asked.number}, {changes}: {outcome}")


def _open(config: ml_collections.ConfigDict, workdir: epath.Path, pace: Pace) -> Any:
    """The Optuna study of a workdir; stopped trials are queued first."""
    try:
        import optuna  # noqa: PLC0415 - an extra
        from optuna.storages.journal import JournalFileBackend  # noqa: PLC0415
    except ImportError as error:
        raise UserError(
            "A search needs Optuna: in the folder of this project, "
            "pip install -c constraints.txt -e '.[search]'."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    require_validation(config)
    _claim(config, workdir)
    require_same_budget(workdir, trial_minutes=pace.minutes)
    _mend(workdir / JOURNAL_FILE)
    journal = JournalFileBackend(str(workdir / JOURNAL_FILE))
    study = optuna.create_study(
        study_name="search",
        storage=optuna.storages.JournalStorage(journal),
        direction="maximize",
        load_if_exists=True,
    )
    # A search that goes on must not draw again what it drew before.
    seed = config.seed + len(study.trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Running trials count as bad ones, so that concurrent trials get other values.
        study.sampler = optuna.samplers.TPESampler(
            seed=seed, constant_liar=pace.at_once > 1 or pace.place.engine == "ray"
        )
    study.pruner = _pruner() if pace.prune else optuna.pruners.NopPruner()
    again = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    for trial in again:
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    if all(trial.value is None for trial in study.trials):
        again = [trial for trial in _finished(study) if trial.params]  # whatever the cause was
    for trial in again:
        study.set_user_attr(f"stopped {trial.number}", True)
        study.enqueue_trial(trial.params, skip_if_exists=False)
    return study


def _pruner() -> Any:
    """Ends a trial whose best validation so far is below the median of whole trials at its epoch.

    Not before five trials are whole, and never in the first `_GRACE` epochs.
    """
    import optuna  # noqa: PLC0415 - an extra

    return optuna.pruners.MedianPruner(n_startup_trials=_WHOLE_TRIALS, n_warmup_steps=_GRACE)


def _mend(journal: epath.Path) -> None:
    """Removes a last line that a killed process has not written whole."""
    content = journal.read_bytes() if journal.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        print(f"{journal}: the last line is cut, and left out.", flush=True)
        write_whole(journal, whole)


def _claim(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Saves the configuration in the folder; raises UserError if there is another one."""
    if not (workdir / FILE_NAME).exists():
        if (workdir / JOURNAL_FILE).exists():
            raise UserError(
                f"{workdir} holds a search, but not its {FILE_NAME}: what it searched can't be "
                "told. Choose another --workdir."
            )
        workdir.mkdir(parents=True, exist_ok=True)
        save_config(config, workdir)
    require_same_config(config, workdir, WITHOUT_EFFECT)
    there = load_config(workdir).search.space
    if there != config.search.space:
        raise UserError(
            f"{workdir} holds a search of another space ({there}). Choose another --workdir, or "
            "give the same --config.search.space to go on."
        )


def _try_first(
    study: Any,
    dimensions: list[Dimension],
    config: ml_collections.ConfigDict,
    console: Console,
) -> None:
    """The first trial has the configuration's own values, so that the result is no worse."""
    fields = flattened(config)
    outside = [d.field for d in dimensions if not d.contains(fields[d.field])]
    if outside:
        console.print(
            f"The configuration's own {', '.join(outside)} lies outside the space: it is not tried."
        )
        return
    study.enqueue_trial({d.field: d.name_of(fields[d.field]) for d in dimensions})


def _finished(study: Any) -> list[Any]:
    """Trials that have a value, or failed without being stopped."""
    return [
        trial
        for trial in study.trials
        if trial.state.is_finished() and f"stopped {trial.number}" not in study.user_attrs
    ]


def _make_trial(
    asked: Any,
    dimensions: list[Dimension],
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
) -> Trial:
    """The trial that Optuna suggests; the same values have the same folder."""
    changes = {dimension.field: dimension.suggest(asked) for dimension in dimensions}
    own = config.copy_and_resolve_references()
    own.update_from_flattened_dict(changes)
    name = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:16]
    folder = workdir / TRIALS_FOLDER / name
    return Trial(f"trial {asked.number}", changes, own, folder)


def _value(
    trial: Trial,
    curve: _Curve,
    run: Callable[[Trial], bool],
    lock: threading.Lock,
    console: Console,
) -> float | None:
    """Validation NDCG@10; None if the trial fails, is pruned, or its values don't go together."""
    with lock:
        try:
            validate_config(trial.config)
            trial.prepare()
        except UserError as error:
            console.print(f"{trial.changes}: {shown(error, 300)}")
            return None
        result = trial.result()
        if result is None and run(trial):
            result = trial.result()
    if result is not None:
        curve.tell(validations(trial))  # the last ones, or all of a trial that had ended before
    return None if result is None else float(result["metrics"]["validation"][OBJECTIVE])


def _print_best(complete: list[Any], console: Console, number: int = 10) -> None:
    fields = list(complete[0].params)
    headers = (Column(field, overflow="fold") for field in fields)  # names whole, on any width
    table = Table("trial", *headers, f"validation {OBJECTIVE}", title="Best trials")
    for trial in sorted(complete, key=lambda t: -t.value)[:number]:
        values = (f"{trial.params[field]:.4g}" if isinstance(trial.params[field], float)
                  else str(trial.params[field]) for field in fields)  # fmt: skip
        table.add_row(str(trial.number), *values, f"{trial.value:.4f}")
    console.print(table)
    best = max(complete, key=lambda t: t.value).params
    flags = " ".join(shlex.quote(f"--config.{field}={value}") for field, value in best.items())
    console.print(f"To train with the best: {flags}", soft_wrap=True)
