"""Runs a study: each trial in its own process. Trials that have ended are skipped."""

import functools
import json
from collections.abc import Sequence
from concurrent.futures import as_completed

import ml_collections
from etils import epath
from rich.console import Console

from tssr_jax.adapting import adapted
from tssr_jax.config.files import write_whole
from tssr_jax.errors import UserError
from tssr_jax.reporting import make_console, make_progress
from tssr_jax.studies.budget import require_same_budget
from tssr_jax.studies.designs import STUDIES, Study
from tssr_jax.studies.report import write_report
from tssr_jax.studies.slots import UNHURRIED, News, Pace, open_slots, run_trial
from tssr_jax.studies.trial import LOG_FILE, Trial, make_trials, require_validation
from tssr_jax.studies.tuning import tune

RESULTS_FILE = "results.jsonl"


def run_study(
    name: str,
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    num_seeds: int,
    only: Sequence[str] = (),
    *,
    pace: Pace = UNHURRIED,
    tune_trials: int = 0,
    refit: bool = False,
) -> None:
    """Runs what is left of a study, then writes results.jsonl, report.md and report.html.

    Args:
      name: one of `STUDIES`.
      config: what the variants change.
      workdir: folder of the study; a second call with the same one goes on.
      num_seeds: number of seeds, from `config.seed` on; after searches, which use `config.seed`,
        from the next one on, so that a search's lucky best trial does not bias the comparison.
      only: names of variants that are run now; () runs all. The report has all ended trials.
      pace: how trials are run.
      tune_trials: trials of a search of each variant's own settings before the study; 0 is none.
      refit: also refit each trial, see `training.refit`; the report has both.

    Raises:
      UserError: if there is no such study or variant, a variant makes no sense, `workdir` holds
        trials of another configuration or tuning, a search has no trial that succeeds, or trials
        fail; the others are run, and reported, all the same.
    """
    study, console = _known(name), make_console()
    if pace.prune and not tune_trials:
        raise UserError(
            "--prune ends trials of a search early; a study compares whole trainings. Add "
            "--tune_trials=8, or leave --prune out."
        )
    require_validation(config)
    config = adapted(config, console.print)
    start = config.seed + 1 if tune_trials else config.seed
    seeds = range(start, start + num_seeds)
    # Invalid variants are reported before hours of searching.
    make = functools.partial(make_trials, config=config, seeds=seeds, workdir=workdir, refit=refit)
    asked = _asked(trials := make(study), only)
    require_same_budget(workdir, tune_trials=tune_trials, trial_minutes=pace.minutes)
    if tune_trials:
        study = tune(study, config, workdir, tune_trials, only, pace=pace)
        asked = _asked(trials := make(study), only)
    for trial in asked:
        trial.prepare()
    trials = [trial for trial in trials if trial in asked or _is_told(trial, console)]
    left = [trial for trial in asked if not trial.done]
    console.print(f"{study.question} {len(asked)} trials, {len(asked) - len(left)} done before.")
    failed: list[Trial] = []
    with make_progress(console) as progress, open_slots(pace) as slots:
        done = len(asked) - len(left)
        task = progress.add_task(name, total=len(asked), completed=done, message="")
        news = News(lambda line: progress.update(task, message=line))
        futures = {
            slots.submit(run_trial, t, pace.minutes, news.of(t.folder.name), slots): t for t in left
        }
        for future in as_completed(futures):
            trial = futures[future]
            if not future.result():
                failed.append(trial)
            progress.advance(task)
            _print_outcome(trial, console)
            _write_results(trials, workdir)
    _write_results(trials, workdir)
    write_report(name, study, [t for t in trials if t.result()], workdir, console)
    _require_success(failed)


def _known(name: str) -> Study:
    if name not in STUDIES:
        raise UserError(f"--study={name} is not known; there are {', '.join(STUDIES)}.")
    return STUDIES[name]


def _asked(trials: Sequence[Trial], only: Sequence[str]) -> list[Trial]:
    """The trials of these variants; of all where none is named."""
    known = list(dict.fromkeys(trial.variant for trial in trials))
    for name in only:
        if name not in known:
            raise UserError(f"--variant={name!r} is not in this study; it has: {'; '.join(known)}.")
    return [trial for trial in trials if not only or trial.variant in only]


def _is_told(trial: Trial, console: Console) -> bool:
    """Whether the report has a trial that is not run now: it has ended, by this configuration."""
    if trial.result() is None:
        return False
    try:
        trial.prepare()
    except UserError:
        console.print(f"{trial.name} is of another configuration: the report leaves it out.")
        return False
    return True


def _require_success(failed: Sequence[Trial]) -> None:
    if failed:
        raise UserError(
            f"{len(failed)} trial(s) failed; the same command runs them again. The last lines of "
            f"{failed[0].folder / LOG_FILE}: {_tail(failed[0])}"
        )


def _print_outcome(trial: Trial, console: Console) -> None:
    result = trial.result()
    if result is None:
        console.print(f"{trial.name} failed: {_tail(trial)}")
        return
    both = (f"{split} {result['metrics'][split]['ndcg@10']:.4f}" for split in result["metrics"])
    console.print(f"{trial.name}: NDCG@10 {', '.join(both)}")


def _tail(trial: Trial) -> str:
    return " ".join((trial.folder / LOG_FILE).read_text().splitlines()[-3:])


def _write_results(trials: Sequence[Trial], workdir: epath.Path) -> None:
    """One line for each trial that has ended, in the order of the study."""
    records = [record for trial in trials if (record := trial.record())]
    text = "".join(json.dumps(record) + "\n" for record in records)
    write_whole(workdir / RESULTS_FILE, text)
