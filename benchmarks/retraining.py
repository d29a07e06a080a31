"""Ten days of retraining: from nothing, warm from the day before, and not at all.

    python -m benchmarks.retraining --data=FOLDER --first=2014-06-24 --workdir=/tmp/retraining

Each day has the data until its end: training reads what is older than a week, the week validates,
and the day itself tests (all its interactions). The last day tests on all that came after it, so
that the ways can be compared by more answers. The way "memories" trains nothing: the model of the
first day reads memories and counts of the newest data.

Training from nothing is measured on the first and on the last day only, unless --every=1. What is
there is not trained again, so the command can be started again.
"""

import datetime
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from absl import app, flags
from rich.table import Table

from tssr_jax.reporting import make_console
from tssr_jax.studies.statistics import paired_difference

_DATA = flags.DEFINE_string("data", None, "Folder of interactions.csv.", required=True)
_FIRST = flags.DEFINE_string("first", None, "The first day, YEAR-MONTH-DAY.", required=True)
_DAYS = flags.DEFINE_integer("days", 10, "Trainings.", lower_bound=2)
_STEP = flags.DEFINE_integer("step", 1, "Days from one training to the next.", lower_bound=1)
_EVERY = flags.DEFINE_integer("every", 0, "Days between trainings from nothing; 0: first, last.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Of the data and runs.", required=True)
_VALIDATION = datetime.timedelta(days=7)
_DAY = datetime.timedelta(days=1)


def write_data(day: datetime.date, is_last: bool, to: Path) -> None:
    """The interactions until the end of the day, or all; items as they are."""
    if to.exists():
        return
    to.mkdir(parents=True)
    rows = pl.read_csv(Path(_DATA.value) / "interactions.csv", infer_schema=False)
    times = rows["timestamp"].cast(pl.Int64)
    end = datetime.datetime.combine(day + _DAY, datetime.time(), datetime.UTC).timestamp()
    (rows if is_last else rows.filter(times < end)).write_csv(to / "interactions.csv")
    for path in Path(_DATA.value).glob("items.*"):
        (to / path.name).symlink_to(path.resolve())


def trained(day: datetime.date, is_last: bool, way: str, *options: str) -> dict[str, Any]:
    """Trains, unless it is there; its seconds, epochs and metrics."""
    folder = Path(_WORKDIR.value) / day.isoformat()
    run, result = folder / way, folder / f"{way}.json"
    if not result.exists():
        write_data(day, is_last, folder / "data")
        cuts = tuple(str(when) for when in (day - _VALIDATION, day))
        start = time.perf_counter()
        subprocess.run(
            [
                *(sys.executable, "-m", "tssr_jax.main", f"--config=csv:{folder / 'data'}"),
                *("--config.evaluate.split=global_time", "--config.evaluate.targets=all"),
                *(f"--config.evaluate.cuts={cuts!r}", f"--workdir={run}", *options),
            ],
            check=True,
        )
        seconds = time.perf_counter() - start
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        epochs = max((line["epoch"] for line in lines if "train/total" in line), default=0)
        found = {"day": day.isoformat(), "way": way, "seconds": seconds, "epochs": epochs}
        for part in ("validation", "test"):
            metrics = json.loads((run / f"{part}_metrics.json").read_text())
            found[part] = {name: metrics[name] for name in ("ndcg@10", "recall@10", "num_users")}
        result.write_text(json.dumps(found))
    return dict(json.loads(result.read_text()))


def gains(way: str, day: datetime.date) -> tuple[np.ndarray, np.ndarray]:
    """The answers of the test, and what each brings to NDCG@10, float [1, answers]."""
    path = Path(_WORKDIR.value) / day.isoformat() / way / "per_user.npz"
    with np.load(path) as arrays:
        ranks, answers = arrays["test_rank"], arrays["test_answer"]
    found = (ranks >= 0) & (ranks < 10)
    return answers, np.where(found, 1 / np.log2(np.maximum(ranks, 0) + 2.0), 0.0)[None]


def main(argv: Sequence[str]) -> None:
    """Trains day by day, and prints the tables."""
    del argv
    first = datetime.date.fromisoformat(_FIRST.value)
    days = [first + i * _STEP.value * _DAY for i in range(_DAYS.value)]
    ways = ("nothing", "warm", "memories")
    found = []
    for i, day in enumerate(days):
        is_last = i == len(days) - 1
        if i in (0, len(days) - 1) or (_EVERY.value and i % _EVERY.value == 0):
            found.append(trained(day, is_last, "nothing"))
        if i == 0:
            continue
        before = Path(_WORKDIR.value) / days[i - 1].isoformat() / ("warm" if i > 1 else "nothing")
        found.append(trained(day, is_last, "warm", f"--config.train.warm_start={before}"))
        start = Path(_WORKDIR.value) / first.isoformat() / "nothing"
        options = (f"--config.train.warm_start={start}", "--config.train.num_epochs=0")
        found.append(trained(day, is_last, "memories", *options))
    table = Table("day", "way", "seconds", "epochs", "answers", "validation", "test")
    for row in found:
        scores = (
            f"{row[part]['ndcg@10']:.4f} / {row[part]['recall@10']:.4f}"
            for part in ("validation", "test")
        )
        table.add_row(
            *(row["day"], row["way"], f"{row['seconds']:.0f}", f"{row['epochs']:g}"),
            *(str(row["test"]["num_users"]), *scores),
        )
    console = make_console()
    console.print(table)
    of_ways = {way: gains(way, days[-1]) for way in ways}
    for way in ways[1:]:
        # The answers are in one order: that of the users and their histories.
        assert np.array_equal(of_ways[way][0], of_ways["nothing"][0])
        difference = paired_difference(of_ways[way][1], of_ways["nothing"][1])
        console.print(
            f"{way} - nothing, NDCG@10 after {days[-1]}: {difference.mean:+.4f} "
            f"[{difference.low:+.4f}, {difference.high:+.4f}], p {difference.p:.4f}"
        )


if __name__ == "__main__":
    app.run(main)
