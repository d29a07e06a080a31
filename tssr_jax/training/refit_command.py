"""Trains a run anew, for as many epochs as were best, on what its validation asked for, too.

    tssr refit --run=runs/mine --workdir=runs/final
    tssr refit --run=runs/mine --workdir=runs/served --everything

Its test metrics say what the newest items of all users bring. With --everything the answers of the
test are trained on as well: the model to serve.
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
    "everything", False, "Train on the answers of the test as well; there are no metrics then."
)
_PROCESSES = process_flags("Train")


def main() -> None:
    """Trains the run of --run anew, in --workdir."""
    if not _RUN.value:
        raise UserError("--run=FOLDER is required: the workdir of the run that is trained anew.")
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
