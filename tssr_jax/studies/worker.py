"""The process of one trial: trains, evaluates, measures what it cost.

    python -m tssr_jax.studies.worker --folder=DIR/trials/NAME-seed0 --minutes=60

Reads DIR/trials/NAME-seed0/config.json, writes result.json beside it; the run is in run/. A second
call goes on from its last checkpoint.
"""

import datetime
import json
import os
import platform
import resource
import signal
import statistics
import threading
import time
from typing import Any

import jax
from absl import flags, logging
from etils import epath

from data_pipeline.input_pipeline import HELD_OUT
from data_pipeline.tensorflow_cpu import tf
from tssr_jax import command_line
from tssr_jax.baselines import run_baseline
from tssr_jax.evaluate import SPLITS, evaluate, restore_best
from tssr_jax.huge_pages import use_huge_pages
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.reporting import METRICS_FILE
from tssr_jax.run_config import load_config, write_json
from tssr_jax.studies.trial import RESULT_FILE, RUN_FOLDER
from tssr_jax.train import train

LATENCY_REQUESTS = 50
LIST_LENGTH = 10

_FOLDER = flags.DEFINE_string("folder", None, "Folder of the trial.", required=True)
_MINUTES = flags.DEFINE_float("minutes", 0.0, "Training ends after so many; 0 is no limit.", 0)


class TimeLimit:
    """Ends training after some minutes as a SIGTERM would; the best checkpoint counts.

    Where training has just ended by itself, the limit's signal is nobody's: a SIGTERM of anyone
    else still ends the program.

    Attributes:
      reached: whether it has.
    """

    def __init__(self, minutes: float):
        self.reached = self._is_mine = False
        self._timer = threading.Timer(60 * minutes, self._end) if minutes else None
        self._others: Any = None

    def __enter__(self) -> "TimeLimit":
        if self._timer:
            self._others = signal.signal(signal.SIGTERM, self._take)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()
            # Else its signal might come when this handler is gone.
            self._timer.join()
            signal.signal(signal.SIGTERM, self._others)

    def _end(self) -> None:
        self.reached = self._is_mine = True
        os.kill(os.getpid(), signal.SIGTERM)

    def _take(self, *_: object) -> None:
        if self._is_mine:
            self._is_mine = False
            return
        signal.signal(signal.SIGTERM, self._others)
        signal.raise_signal(signal.SIGTERM)


def run(folder: epath.Path, minutes: float) -> None:
    """Runs the trial of a folder, unless it is stopped before its end."""
    config, workdir = load_config(folder), folder / RUN_FOLDER
    late = False
    if config.baseline.kind:
        run_baseline(config, workdir)
        found: dict[str, Any] = {"cost": {}}
    else:
        with TimeLimit(minutes) as limit:
            ended = train(config, workdir) is not None
        late = limit.reached and not ended
        if not ended and not late:
            return
        if not ended:
            evaluate(workdir)
        found = trained(workdir)
    found["metrics"] = {
        split: json.loads((workdir / f"{split}_metrics.json").read_text()) for split in SPLITS
    }
    machine = platform.processor() or platform.machine()
    machine = f"{machine}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}"
    today = datetime.date.today().isoformat()
    found |= {"date": today, "machine": machine, "time_limit_reached": late}
    write_json(folder / RESULT_FILE, found)


def trained(workdir: epath.Path) -> dict[str, Any]:
    """The step of a run's best checkpoint, and what it cost."""
    experiment, params, step = restore_best(workdir)
    cost = training_cost(workdir) | {
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        # Before anything else is loaded.
        "peak_gib": peak_bytes() / 2**30,
    }
    del experiment, params
    return {"step": step, "cost": cost | {"latency_ms": latency(workdir)}}


def training_cost(workdir: epath.Path) -> dict[str, float]:
    """Epochs and seconds of each, from metrics.jsonl; the first one, which compiles, apart.

    Without seconds where nothing was trained.
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
    """Median milliseconds from one history of ids to the list of ids, on a warm program."""
    recommender = Recommender.from_workdir(workdir, batch_size=1)
    store, ids = recommender.experiment.sequences, recommender.items.ids
    users = min(LATENCY_REQUESTS + 1, store.lengths.size)
    ends = store.lengths[:users] - HELD_OUT["test"]
    rows = store.rows(tf.range(users, dtype=tf.int64))
    windows = rows.windows(tf.constant(ends), int(ends.max())).numpy()
    seconds = []
    for window in windows:
        history = [ids[item - 1] for item in window[window > 0]]
        begin = time.perf_counter()
        recommender.recommend([history], min(LIST_LENGTH, len(ids)))
        seconds.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(seconds[1:] or seconds)


def peak_bytes() -> int:
    """The most memory that was in use: of the device, or of the process on a processor."""
    of_device = jax.devices()[0].memory_stats() or {}
    of_process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(of_device.get("peak_bytes_in_use", of_process))


def main() -> None:
    """Runs the trial."""
    logging.set_verbosity(logging.WARNING)
    run(epath.Path(_FOLDER.value), _MINUTES.value)


if __name__ == "__main__":
    use_huge_pages()
    command_line.run(main)
