"""Trains, or resumes the run in --workdir; then tests its best checkpoint and prints a table.

    tssr train --config=ml100k --workdir=runs/ml100k

With --config.baseline.kind a baseline is evaluated in the model's place.
"""

from absl import flags

from tssr_jax import cli
from tssr_jax.config import validate_config

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag()
_MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "Train together with the other processes of this TPU pod or cluster."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, if --multihost can't detect it."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")


def main() -> None:
    """Trains the model, or evaluates the baseline, of --config."""
    config, workdir = cli.required_config(_CONFIG), cli.required_workdir(_WORKDIR)
    validate_config(config)  # reports invalid settings before slow imports
    if _MULTIHOST.value or _COORDINATOR.value:
        from tssr_jax.parallel.processes import join

        join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if config.baseline.kind:
        from tssr_jax.evaluation.evaluate import run_baseline

        run_baseline(config, workdir)
    else:
        from tssr_jax.training.loop import train

        train(config, workdir)
