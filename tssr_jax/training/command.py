"""Trains, or resumes the run in --workdir; then tests its best checkpoint and prints a table.

    tssr train --config=ml100k --workdir=runs/ml100k

With --config.baseline.kind a baseline is evaluated in the model's place.
"""

from tssr_jax import cli
from tssr_jax.config import validate_config
from tssr_jax.locks import one_writer, require_no_writer
from tssr_jax.parallel.flags import process_flags

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag()
_PROCESSES = process_flags("Train")


def main() -> None:
    """Trains the model, or evaluates the baseline, of --config."""
    config, workdir = cli.required_config(_CONFIG), cli.required_workdir(_WORKDIR)
    # Invalid settings, and another writer, are told before slow imports.
    validate_config(config)
    require_no_writer(workdir)
    with _PROCESSES.joined():
        if config.baseline.kind:
            from tssr_jax.evaluation.evaluate import run_baseline

            with one_writer(workdir):
                run_baseline(config, workdir)
        else:
            from tssr_jax.training.loop import train

            train(config, workdir)
