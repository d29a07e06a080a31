"""Command line.

    python -m tssr_jax.main --config=configs/tuned_long.py:ml100k --workdir=runs/ml100k
    python -m tssr_jax.main --mode=evaluate --workdir=runs/ml100k
    python -m tssr_jax.main --mode=recommend --workdir=... --input=FILE.jsonl --output=FILE.jsonl
    python -m tssr_jax.main --mode=study --study=ablation --config=... --workdir=runs/ablation

The first trains (a second call resumes), tests the best checkpoint and prints a table; the second
restores that checkpoint and prints the same numbers; the third asks it. Every field of the
configuration (configs/default.py lists them) can be set: --config.model.d_model=64.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags, logging
from etils import epath
from ml_collections import config_flags

from tssr_jax import command_line
from tssr_jax.errors import UserError
from tssr_jax.huge_pages import use_huge_pages

if TYPE_CHECKING:
    from tssr_jax.studies.slots import Pace

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, e.g. configs/ml100k.py or configs/csv.py:FOLDER."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, here or gs://: checkpoints, metrics, TensorBoard events."
)
_RAW_DIR = flags.DEFINE_string(
    "raw_dir",
    None,
    "--mode=evaluate, recommend, export, serve: where the run's raw files lie now, if not where "
    "they lay when it was trained.",
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
_STUDY = flags.DEFINE_string(
    "study", "ablation", "--mode=study: which one; docs/studies.md lists them."
)
_VARIANT = flags.DEFINE_multi_string(
    "variant", [], "--mode=study: run only this one now; may be repeated. By default all."
)
_SEEDS = flags.DEFINE_integer(
    "seeds",
    3,
    "--mode=study: seeds of each variant, from --config.seed on; with --tune_trials from the next.",
    1,
)
_TUNE_TRIALS = flags.DEFINE_integer(
    "tune_trials",
    0,
    "--mode=study: first search each variant's own settings by so many trials; 0 does not.",
    0,
)
_TRIALS = flags.DEFINE_integer("trials", 20, "--mode=search: trials in all.", 1)
_TRIAL_MINUTES = flags.DEFINE_float(
    "trial_minutes", 0.0, "--mode=study, search: that a training may take; 0 is no limit.", 0.0
)
_TRIALS_AT_ONCE = flags.DEFINE_integer(
    "trials_at_once",
    1,
    "--mode=study, search: that run side by side on a processor, each on its share of the cores.",
    1,
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "recommend", "export", "serve", "size", "study", "search"],
    "train (or resume), evaluate the best checkpoint, recommend items for the histories of a file, "
    "export a run for programs without this package, serve it over HTTP with a page to look at, "
    "tell what a step needs on which devices (size), compare several trainings (study), or search "
    "settings.",
)
_INPUT = flags.DEFINE_string(
    "input", None, "--mode=recommend: histories, .jsonl, .csv or .parquet (docs/recommending.md)."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "--mode=recommend: where the lists go, .jsonl, .csv or .parquet. --mode=export: a new folder.",
)
_TOP_K = flags.DEFINE_integer("top_k", 10, "--mode=recommend, export: items for each history.", 1)
_KEEP_SEEN = flags.DEFINE_bool(
    "keep_seen", False, "--mode=recommend: also recommend what is in the history."
)
_NEW_ITEMS = flags.DEFINE_string(
    "new_items", None, "--mode=recommend, export: table of items that training has not seen."
)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "--mode=serve: address to listen at.")
_PORT = flags.DEFINE_integer("port", 8000, "--mode=serve: port to listen at.", 1, 65535)
_MOST_AT_ONCE = flags.DEFINE_integer(
    "most_at_once", 64, "--mode=serve: requests that are answered at once; further ones get 503.", 1
)
_OPEN_PAGE = flags.DEFINE_bool("open_page", False, "--mode=serve: open the page in a browser.")
_FORMATS = flags.DEFINE_list(
    "formats", "saved_model,stablehlo,vectors", "--mode=export: which of these."
)
_PLATFORMS = flags.DEFINE_list(
    "platforms", "cpu", "--mode=export: that its programs run on, of cpu, cuda, rocm, tpu."
)
_ONLY_ITEMS = flags.DEFINE_string(
    "only_items", None, "--mode=recommend: file with the ids that may be recommended, one a line."
)
_NEVER_ITEMS = flags.DEFINE_string(
    "never_items", None, "--mode=recommend: file with ids that may not be."
)


def main() -> None:
    """Hands over to the mode's entry point."""
    if "verbosity" not in flags.FLAGS or not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells of every file that it writes.
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
        _evaluate(workdir)
        return
    if _MODE.value == "recommend":
        _recommend(workdir)
        return
    if _MODE.value == "export":
        _export(workdir)
        return
    if _MODE.value == "serve":
        _serve(workdir)
        return
    _require_config()
    if _MODE.value == "study":
        from tssr_jax.studies.runner import run_study

        run_study(
            _STUDY.value,
            _CONFIG.value,
            workdir,
            _SEEDS.value,
            _VARIANT.value,
            pace=_pace(),
            tune_trials=_TUNE_TRIALS.value,
        )
    elif _MODE.value == "search":
        from tssr_jax.studies.search import search

        search(_CONFIG.value, workdir, _TRIALS.value, _pace())
    elif _CONFIG.value.baseline.kind:
        from tssr_jax.baselines import run_baseline

        run_baseline(_CONFIG.value, workdir)
    else:
        from tssr_jax.train import train

        train(_CONFIG.value, workdir)


def _pace() -> "Pace":
    from tssr_jax.studies.slots import Pace

    return Pace(_TRIAL_MINUTES.value, _TRIALS_AT_ONCE.value)


def _evaluate(workdir: epath.Path) -> None:
    from tssr_jax.baselines import evaluate_baseline
    from tssr_jax.evaluate import evaluate
    from tssr_jax.run_config import load_config

    of_baseline = load_config(workdir).baseline.kind
    (evaluate_baseline if of_baseline else evaluate)(workdir, _RAW_DIR.value)


def _export(workdir: epath.Path) -> None:
    from tssr_jax.recommending.export import ExportRequest, run_export

    if not _OUTPUT.value:
        raise UserError("--output=FOLDER is required to export.")
    new = Path(_NEW_ITEMS.value).expanduser() if _NEW_ITEMS.value else None
    request = ExportRequest(
        Path(_OUTPUT.value).expanduser(), _FORMATS.value, _PLATFORMS.value, _TOP_K.value, new
    )._replace(raw_dir=_RAW_DIR.value)
    run_export(workdir, request)


def _serve(workdir: epath.Path) -> None:
    try:
        from tssr_jax.serving.server import run_serve
        from tssr_jax.serving.service import Limits
    except ModuleNotFoundError as error:
        raise UserError(
            f"--mode=serve needs the package {error.name}: in the folder of this project, "
            "pip install -c constraints.txt -e '.[serve]'"
        ) from error
    limits = Limits(most_at_once=_MOST_AT_ONCE.value)
    place = _HOST.value, _PORT.value
    run_serve(workdir, *place, limits, open_page=_OPEN_PAGE.value, raw_dir=_RAW_DIR.value)


def _recommend(workdir: epath.Path) -> None:
    from tssr_jax.recommending.command import Request, run_recommend

    if not _INPUT.value or not _OUTPUT.value:
        raise UserError("--input=FILE and --output=FILE are required to recommend.")
    new, only, never = (
        Path(flag.value).expanduser() if flag.value else None
        for flag in (_NEW_ITEMS, _ONLY_ITEMS, _NEVER_ITEMS)
    )
    request = Request(
        Path(_INPUT.value).expanduser(),
        Path(_OUTPUT.value).expanduser(),
        top_k=_TOP_K.value,
        keep_seen=_KEEP_SEEN.value,
        new_items=new,
        only=only,
        never=never,
        raw_dir=_RAW_DIR.value,
    )
    run_recommend(workdir, request)


def _require_config() -> None:
    if _CONFIG.value is None:
        raise UserError(f"--config=FILE is required to {_MODE.value}: e.g. configs/ml100k.py.")


if __name__ == "__main__":
    use_huge_pages()
    command_line.run(main)
