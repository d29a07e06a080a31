"""The process of one trial: trains, evaluates, measures what it cost.

    python -m tssr_jax.studies.worker --folder=DIR/trials/NAME-seed0 --minutes=60 --parent=$$

Reads DIR/trials/NAME-seed0/config.json, writes result.json beside it; the run is in run/. A second
call goes on from its last checkpoint. With --refit the run is then refitted, in refit/.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import resource
import signal
import statistics
import time
from typing import Any

import jax
import ml_collections
from absl import flags, logging
from etils import epath

from tssr_jax import cli
from tssr_jax.config.files import write_json
from tssr_jax.config.saved import load_config
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.evaluation.evaluate import SPLITS, evaluate, restore_best, run_baseline
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.reporting import METRICS_FILE
from tssr_jax.runtime import StopRequest, end_with_parent, use_huge_pages
from tssr_jax.studies.trial import REFIT_FOLDER, RESULT_FILE, RUN_FOLDER
from tssr_jax.training.loop import train
from tssr_jax.training.refit import refit

LATENCY_REQUESTS = 50
LIST_LENGTH = 10

_FOLDER = flags.DEFINE_string("folder", None, "Folder of the trial.", required=True)
_PARENT = flags.DEFINE_integer("parent", None, "Ends when this process is gone.", required=True)
_MINUTES = flags.DEFINE_float("minutes", 0.0, "Training ends after this many; 0 is no limit.", 0)
_REFIT = flags.DEFINE_bool("refit", False, "Also refit the run.")


def run(folder: epath.Path, minutes: float, *, with_refit: bool = False) -> None:
    """Runs what is left of the trial of a folder, unless it is stopped before its end."""
    config, workdir = load_config(folder), folder / RUN_FOLDER
    path = folder / RESULT_FILE
    if path.exists():
        found = json.loads(path.read_text())
    else:
        found = ended(config, workdir, minutes)
        if found is None:
            return
        write_json(path, found)
    if with_refit:
        again = refitted(config, workdir, folder / REFIT_FOLDER)
        if again is not None:
            found["metrics"]["refit"] = again
            write_json(path, found)


def ended(
    config: ml_collections.ConfigDict, workdir: epath.Path, minutes: float
) -> dict[str, Any] | None:
    """The result of a trial's training; None if it was stopped."""
    late = False
    if config.baseline.kind:
        run_baseline(config, workdir)
        found: dict[str, Any] = {"cost": {}}
    else:
        stop = StopRequest(60 * minutes)
        late = train(config, workdir, stop) is None
        if stop.terminated and late:
            return None
        if late:
            evaluate(workdir)
        found = trained(workdir)
    found["metrics"] = {
        split: json.loads((workdir / f"{split}_metrics.json").read_text()) for split in SPLITS
    }
    machine = platform.processor() or platform.machine()
    machine = f"{machine}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}"
    today = datetime.date.today().isoformat()
    return found | {"date": today, "machine": machine, "time_limit_reached": late}


def refitted(
    config: ml_collections.ConfigDict, workdir: epath.Path, new: epath.Path
) -> dict[str, Any] | None:
    """The test metrics of a run's refit; None if it was stopped."""
    if not config.baseline.kind:
        return refit(workdir, new)
    config.evaluate.held_out, config.train.early_stopping_patience = ("test",), 0
    return run_baseline(config, new)


def trained(workdir: epath.Path) -> dict[str, Any]:
    """The step of a run's best checkpoint, and the cost of the run."""
    run, params, step = restore_best(workdir)
    cost = training_cost(workdir) | {
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        # Before anything else is loaded.
        "peak_gib": peak_bytes() / 2**30,
    }
    del run, params
    # A catalogue that is cut over devices may not fit on the one device that serves requests.
    if load_config(workdir).model_devices == 1:
        cost |= {"request_ms": latency(workdir)}
    return {"step": step, "cost": cost}


def training_cost(workdir: epath.Path) -> dict[str, float]:
    """Number of epochs, best epoch, and median seconds of an epoch, from metrics.jsonl.

    The first epoch, which compiles, is left out of the median. Without seconds if nothing was
    trained.
    """
    records = [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]
    logs = [record for record in records if "sequences_per_second" in record]
    seconds = [record["seconds_per_epoch"] for record in logs]
    median = {"seconds_per_epoch": statistics.median(seconds[1:] or seconds)} if logs else {}
    best = max(
        (record for record in records if "validation/ndcg@10" in record),
        key=lambda record: record["validation/ndcg@10"],
    )
    return median | {"epochs": records[-1]["epoch"], "best_epoch": best["epoch"]}


def latency(workdir: epath.Path) -> float:
    """Median milliseconds from one history of ids to the list of ids.

    Only the second call for each history counts: another number of seen items may compile.
    """
    recommender = Recommender.from_workdir(workdir, batch_size=1)
    store, ids = recommender.run.sequences, recommender.items.ids
    users, ends = (values[:LATENCY_REQUESTS] for values in store.splits.targets["test"])
    rows = store.rows(tf.constant(users))
    windows = rows.windows(tf.constant(ends), int(ends.max())).numpy()
    seconds = []
    for window in windows:
        history = [ids[item - 1] for item in window[window > 0]]
        for _ in range(2):
            begin = time.perf_counter()
            recommender.recommend([history], min(LIST_LENGTH, len(ids)))
            second = time.perf_counter() - begin
        seconds.append(second)
    return 1e3 * statistics.median(seconds)


def peak_bytes() -> int:
    """Peak memory in bytes: of the device, or of the process on a CPU."""
    of_device = jax.devices()[0].memory_stats() or {}
    of_process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(of_device.get("peak_bytes_in_use", of_process))


def main() -> None:
    """Runs the trial."""
    logging.set_verbosity(logging.WARNING)
    # A terminal sends Ctrl-C to all its processes; the study asks its trials to save by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(_PARENT.value)
    run(epath.Path(_FOLDER.value), _MINUTES.value, with_refit=_REFIT.value)


if __name__ == "__main__":
    use_huge_pages()
    cli.run(main)
