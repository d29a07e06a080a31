"""Runs a study: each trial in a process of its own, what has ended is not run again."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import ml_collections
from etils import epath
from rich.console import Console

from tssr_jax.errors import UserError
from tssr_jax.reporting import METRICS_FILE, make_console, make_progress
from tssr_jax.run_config import write_whole
from tssr_jax.studies.designs import STUDIES
from tssr_jax.studies.report import write_report
from tssr_jax.studies.trial import LOG_FILE, Trial, make_trials

RESULTS_FILE = "results.jsonl"
_SECONDS_BETWEEN_LOOKS = 1.0


def run_study(
    name: str,
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    num_seeds: int,
    minutes: float = 0.0,
) -> None:
    """Runs what is left of a study, then writes results.jsonl, report.md and report.html.

    Args:
      name: one of `STUDIES`.
      config: what the variants change.
      workdir: folder of the study; a second call with the same one goes on.
      num_seeds: from `config.seed` on.
      minutes: that training of a trial may take; 0 is no limit.

    Raises:
      UserError: if a variant makes no sense, `workdir` holds trials of another configuration, or
        trials fail; the others are run, and reported, all the same.
    """
    if name not in STUDIES:
        raise UserError(f"--study={name} is not known; there are {', '.join(STUDIES)}.")
    study, console = STUDIES[name], make_console()
    trials = make_trials(study, config, num_seeds, workdir)
    for trial in trials:
        trial.prepare()
    left = [trial for trial in trials if trial.result() is None]
    console.print(f"{study.question} {len(trials)} trials, {len(trials) - len(left)} done before.")
    failed: list[Trial] = []
    with make_progress(console) as progress:
        done = len(trials) - len(left)
        task = progress.add_task(name, total=len(trials), completed=done, message="")
        for trial in left:

            def tell(message: str, trial: Trial = trial) -> None:
                progress.update(task, message=f"{trial.folder.name}: {message}")

            if not run_trial(trial, minutes, tell):
                failed.append(trial)
            progress.advance(task)
            _print_outcome(trial, console)
            _write_results(trials, workdir)
    _write_results(trials, workdir)
    write_report(name, study, [t for t in trials if t.result()], workdir, console)
    if failed:
        raise UserError(
            f"{len(failed)} trial(s) failed; the same command runs them again. The last lines of "
            f"{failed[0].folder / LOG_FILE}: {_tail(failed[0])}"
        )


def run_trial(trial: Trial, minutes: float, tell: Callable[[str], None]) -> bool:
    """Whether it came to its end; stops it with this process."""
    command = [
        *(sys.executable, "-m", "tssr_jax.studies.worker"),
        *(f"--folder={trial.folder}", f"--minutes={minutes}"),
    ]
    with (trial.folder / LOG_FILE).open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                tell(_news(trial))
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:
            process.terminate()  # asks a training to save and to end, if it still runs
            process.wait()
    return process.returncode == 0 and trial.result() is not None


def _news(trial: Trial) -> str:
    """The newest line of its metrics, in words."""
    path = trial.run / METRICS_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        record = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        record = {}  # it is being written
    value = record.get("validation/ndcg@10")
    rank = "" if value is None else f", validation NDCG@10 {value:.4f}"
    return f"epoch {record['epoch']:g}{rank}" if record else "preparing"


def _print_outcome(trial: Trial, console: Console) -> None:
    result = trial.result()
    if result is None:
        console.print(f"{trial.folder.name} failed: {_tail(trial)}")
        return
    both = (f"{split} {result['metrics'][split]['ndcg@10']:.4f}" for split in result["metrics"])
    console.print(f"{trial.folder.name}: NDCG@10 {', '.join(both)}")


def _tail(trial: Trial) -> str:
    return " ".join((trial.folder / LOG_FILE).read_text().splitlines()[-3:])


def _write_results(trials: Sequence[Trial], workdir: epath.Path) -> None:
    """One line for each trial that has ended, in the order of the study."""
    records = [record for trial in trials if (record := trial.record())]
    text = "".join(json.dumps(record) + "\n" for record in records)
    write_whole(workdir / RESULTS_FILE, text)
