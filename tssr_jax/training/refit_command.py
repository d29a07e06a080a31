"""Retrains a run with its validation targets in the training data, for its best number of epochs.

    tssr refit --run=runs/mine --workdir=runs/final
    tssr refit --run=runs/mine --workdir=runs/served --everything

Its test metrics say what these targets bring. With --everything the test targets are in the
training data as well, for a model to serve; nothing is measured then.
"""

from absl import flags
from etils import epath

from tssr_jax import cli
from tssr_jax.errors import UserError
from tssr_jax.locks import require_no_writer
from tssr_jax.parallel.flags import process_flags

_RUN = flags.DEFINE_string("run", None, "Workdir of a run that has ended.")
_WORKDIR = cli.workdir_flag()
_RAW_DIR = cli.raw_dir_flag()
_EVERYTHING = flags.DEFINE_bool(
    "everything", False, "Also train on the test targets; nothing is measured then."
)
_PROCESSES = process_flags("Train")


def main() -> None:
    """Retrains the run of --run in --workdir."""
    if not _RUN.value:
        raise UserError("--run=FOLDER is required: the workdir of the run to retrain.")
    workdir = cli.required_workdir(_WORKDIR)
    require_no_writer(workdir)
    with _PROCESSES.joined():
        from tssr_jax.training.refit import refit

        refit(
            epath.Path(_RUN.value),
            workdir,
            everything=_EVERYTHING.value,
            raw_dir=_RAW_DIR.value,
        )
