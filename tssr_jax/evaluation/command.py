"""Restores the best checkpoint of the run in --workdir and tests it again.

tssr evaluate --workdir=runs/ml100k
"""

from tssr_jax import cli
from tssr_jax.parallel.flags import process_flags

_WORKDIR = cli.workdir_flag()
_RAW_DIR = cli.raw_dir_flag()
_PROCESSES = process_flags("Evaluate")


def main() -> None:
    """Evaluates a model's or a baseline's run."""
    workdir = cli.required_workdir(_WORKDIR)
    from tssr_jax.config.saved import load_config

    of_baseline = load_config(workdir).baseline.kind
    with _PROCESSES.joined():
        from tssr_jax.evaluation.evaluate import evaluate, evaluate_baseline

        (evaluate_baseline if of_baseline else evaluate)(workdir, _RAW_DIR.value)
