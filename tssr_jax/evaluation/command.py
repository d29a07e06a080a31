"""Restores the best checkpoint of the run in --workdir and tests it again.

tssr evaluate --workdir=runs/ml100k
"""

from absl import flags

from tssr_jax import cli

_WORKDIR = cli.workdir_flag()
_RAW_DIR = cli.raw_dir_flag()
_MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "Evaluate together with the other processes of this TPU pod or cluster."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, if --multihost can't detect it."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")


def main() -> None:
    """Evaluates a model's or a baseline's run."""
    workdir = cli.required_workdir(_WORKDIR)
    from tssr_jax.config.saved import load_config

    of_baseline = load_config(workdir).baseline.kind
    if _MULTIHOST.value or _COORDINATOR.value:
        from tssr_jax.parallel.processes import join

        join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    from tssr_jax.evaluation.evaluate import evaluate, evaluate_baseline

    (evaluate_baseline if of_baseline else evaluate)(workdir, _RAW_DIR.value)
