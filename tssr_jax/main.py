"""Command line.

    python -m tssr_jax.main --config=configs/ml100k.py --workdir=runs/ml100k
    python -m tssr_jax.main --mode=evaluate --workdir=runs/ml100k

The first trains (a second call resumes), tests the best checkpoint and prints a table; the second
restores that checkpoint and prints the same numbers. Every field of the configuration
(configs/default.py lists them) can be set: --config.model.d_model=64.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from tssr_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, e.g. configs/ml100k.py or configs/csv.py:FOLDER."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, here or gs://: checkpoints, metrics, TensorBoard events."
)
_TOPOLOGY = flags.DEFINE_multi_string(
    "topology", ["cpu:8"], "--mode=size: devices, cpu:N or a slice of TPUs like v5e:2x4."
)
_GLOBAL_BATCH = flags.DEFINE_multi_integer(
    "global_batch", [], "--mode=size: users in a step; by default --config.train.batch_size."
)
_NUM_ITEMS = flags.DEFINE_integer(
    "num_items", 0, "--mode=size: size of the catalogue; by default that of the data.", 0
)
_FEATURE_DIM = flags.DEFINE_integer(
    "feature_dim", 384, "--mode=size: width of the content features.", 1
)
_MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "Train together with the other processes of this TPU pod or cluster."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where --multihost can't find it out."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "size"],
    "train (or resume), evaluate the best checkpoint, or tell what a step needs on which devices.",
)


def main(argv: Sequence[str]) -> None:
    """Hands over to the mode's entry point."""
    if "verbosity" not in flags.FLAGS or not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells of every file that it writes.
    if len(argv) > 1:
        raise UserError(f"Unexpected argument {argv[1]!r}; flags start with --.")
    if _MODE.value == "size":
        _require_config()
        from tssr_jax.sizing import report

        batches = _GLOBAL_BATCH.value
        report(_CONFIG.value, _TOPOLOGY.value, batches, _NUM_ITEMS.value, _FEATURE_DIM.value)
        return
    if not _WORKDIR.value:
        raise UserError("--workdir=DIR is required: the folder of the run.")
    workdir = epath.Path(_WORKDIR.value).expanduser()
    # Imported late, so that --help and wrong flags are answered at once.
    if _MULTIHOST.value or _COORDINATOR.value:
        from tssr_jax.processes import join

        join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if _MODE.value == "evaluate":
        from tssr_jax.evaluate import evaluate

        evaluate(workdir)
        return
    _require_config()
    from tssr_jax.train import train

    train(_CONFIG.value, workdir)


def _require_config() -> None:
    if _CONFIG.value is None:
        raise UserError(f"--config=FILE is required to {_MODE.value}: e.g. configs/ml100k.py.")


def _parse_flags(argv: Sequence[str]) -> list[str]:
    # ml_collections would print a stack of frames for a file that is not there.
    for flag in argv:
        path = flag.partition("=")[2].partition(":")[0]
        if flag.startswith(("--config=", "-config=")) and not Path(path).is_file():
            _stop(f"--config: there is no file {path!r}; configs/ holds those of this project.")
    try:
        return app.parse_flags_with_usage(list(argv))
    except (AttributeError, KeyError) as error:
        # What ml_collections raises for a field that does not exist.
        message = " ".join(str(error.args[0]).replace("'", "").split())
        _stop(f"Unknown configuration field: {message} (configs/default.py lists all fields.)")
    except (OSError, TypeError, ValueError) as error:
        _stop(f"--config can't be used: {' '.join(str(error).split())}")


def _stop(message: str) -> NoReturn:
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(1)


def run() -> None:
    """Entry point: a UserError becomes one paragraph and exit status 1."""

    def guarded(argv: Sequence[str]) -> None:
        try:
            main(argv)
        except UserError as error:
            _stop(str(error))
        except OSError as error:
            _stop(f"{error}. What was complete before stays as it was.")
        except KeyboardInterrupt:
            _stop("interrupted. The same command resumes from the last checkpoint.")

    app.run(guarded, flags_parser=_parse_flags)


if __name__ == "__main__":
    run()
