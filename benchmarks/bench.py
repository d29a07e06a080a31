"""Benchmarks of speed, against peers on the same processor.

    make bench                                     all cases
    make bench BENCH_FLAGS="--toys=FOLDER --only=rank --repeats=9"
    make bench-check                               and compare with benchmarks/baseline.json

Each contender of a case runs in its own process. All contenders are started one after the other,
then take turns, so that other load on the machine affects all of them. The table has medians. The
ratio is a contender's time divided by ours. The floor is the arithmetic of the case at the speed of
a 2,048^3 product, measured in the same run. "first" is the time from the start of the process to
the end of the first step ("warm": ours with a warm compilation cache). Peers need their own
environment, which the Makefile makes.
"""

import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.cases import CASES, PEAK_FLOPS, Case
from tssr_jax.config.files import write_json
from tssr_jax.errors import UserError
from tssr_jax.runtime import wanted_environment

ROOT = Path(__file__).parents[1]
BASELINE = ROOT / "benchmarks" / "baseline.json"
PEAK = {"kind": "peak"}

_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed turns of each contender.", lower_bound=1)
_ONLY = flags.DEFINE_string("only", "", "Only cases whose names contain this.")
_TOYS = flags.DEFINE_string("toys", "", "Folder with interactions.csv and items.csv of a data set.")
_PEERS = flags.DEFINE_string("peers_python", ".venv-peers/bin/python", "The peers' interpreter.")
_OUTPUT = flags.DEFINE_string("output", "runs/bench.json", "Where all numbers are written.")
_CHECK = flags.DEFINE_bool("check", False, "Fail where a ratio is below that of the baseline.")
_TOLERANCE = flags.DEFINE_float("tolerance", 0.2, "Share by which a ratio may fall.", 0, 1)


class Worker:
    """One contender's process.

    Attributes:
      first: seconds from its start to the end of the first repeat.
      first_repeat: seconds of that repeat alone: compilation, where there is any.
      answers: measurements of each timed repeat.
    """

    def __init__(self, contender: str, case: dict[str, Any], settings: dict[str, str]):
        command = {
            "ours": [sys.executable, "-m", "benchmarks.ours"],
            "rectools": [_PEERS.value, "-m", "benchmarks.peers.run_rectools"],
            "recbole": [_PEERS.value, "-m", "benchmarks.peers.run_recbole"],
        }.get(contender, [_PEERS.value, "-m", "benchmarks.peers.run_twin"])
        self._contender = contender
        begin = time.perf_counter()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [*command, json.dumps(case), contender],
            cwd=ROOT,
            env=os.environ | settings | (wanted_environment() if contender == "ours" else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.first_repeat = self._answer()["first"]["seconds"]
        self.first = time.perf_counter() - begin
        self.answers: list[dict[str, float]] = []

    def take_turn(self) -> None:
        """One timed repeat."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.answers.append(self._answer())

    def stop(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def median(self, name: str = "seconds") -> float:
        """The median of a measurement over all turns."""
        return statistics.median(answer[name] for answer in self.answers)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise UserError(f"{self._contender} ended:\n{self._log.read()[-3_000:]}")
        return json.loads(line)


def run_case(case: Case, settings: dict[str, str]) -> dict[str, Any]:
    """Runs all contenders of a case in turns; returns their measurements, and the peak."""
    fields = case.fields()
    workers = {name: Worker(name, fields, settings) for name in case.contenders}
    workers["peak"] = Worker("ours", PEAK, settings)
    for _ in track(range(_REPEATS.value), case.name, transient=True):
        for worker in workers.values():
            worker.take_turn()
    for worker in workers.values():
        worker.stop()
    warm = Worker("ours", fields, settings)  # what the first one compiled is kept
    warm.stop()
    peak = PEAK_FLOPS / workers.pop("peak").median()
    ours = workers["ours"].median()
    measured = {
        name: {
            "seconds": worker.median(),
            "fastest": min(answer["seconds"] for answer in worker.answers),
            "ratio": worker.median() / ours,
            "peak_bytes": worker.answers[-1]["peak_bytes"],
            "first": worker.first,
            "first_repeat": worker.first_repeat,
            "to_floor": worker.median() / (case.flops() / peak) if case.flops() else None,
        }
        for name, worker in workers.items()
    }
    measured["ours"]["first_warm"] = warm.first
    if "waited" in workers["ours"].answers[0]:
        measured["ours"]["waiting"] = workers["ours"].median("waited") / ours
    return {"peak_gflops": peak / 1e9, "contenders": measured}


def make_table(results: dict[str, Any]) -> Table:
    """One line for each contender of each case."""
    table = Table(title=f"Medians of {_REPEATS.value} turns")
    table.add_column("case")
    for name in ("", "time", "to ours", "memory", "first", "warm", "to the floor", "waiting"):
        table.add_column(name, justify="right")
    for case, result in results.items():
        for name, own in result["contenders"].items():
            table.add_row(
                case if name == "ours" else "",
                name,
                f"{own['seconds']:.3f} s",
                f"{own['ratio']:.2f}",
                f"{own['peak_bytes'] / 2**30:.2f} GiB",
                f"{own['first']:.1f} s",
                f"{own['first_warm']:.1f} s" if "first_warm" in own else "",
                f"{own['to_floor']:.2f}" if own["to_floor"] else "",
                f"{own['waiting']:.1%}" if "waiting" in own else "",
            )
    return table


def losses(results: dict[str, Any]) -> list[str]:
    """Ratios that fell below the baseline's by more than the tolerance."""
    kept = json.loads(BASELINE.read_text())
    return [
        f"{case}: {name} took {own['ratio']:.2f} times as long as ours, before {before:.2f} times"
        for case, result in results.items()
        for name, own in result["contenders"].items()
        for before in (kept.get(case, {}).get(name, 0.0),)
        if own["ratio"] < before * (1 - _TOLERANCE.value)
    ]


def recorded(case: Case, folder: Path) -> dict[str, str]:
    """Writes batches of the case's data, which the twin reads."""
    path = tempfile.mkdtemp(dir=folder) + "/recorded.npz"
    command = [sys.executable, "-m", "benchmarks.recorded", json.dumps(case.fields()), path]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return {"BENCH_RECORDED": path}


def main(argv: Sequence[str]) -> None:
    """Prints the table and writes the JSON."""
    del argv
    console = Console(width=None if sys.stdout.isatty() else 140)
    if not (ROOT / _PEERS.value).is_file():
        raise UserError(f"{_PEERS.value} does not exist: `make bench` makes it.")
    subprocess.run([_PEERS.value, "-m", "benchmarks.peers.check_twin"], cwd=ROOT, check=True)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if _ONLY.value not in case.name:
                continue
            own, settings = case, {}
            if case.kind == "epoch":
                if not _TOYS.value:
                    console.print(f"Left out for want of --toys=FOLDER: {case.name}")
                    continue
                own = dataclasses.replace(case, folder=_TOYS.value)
                settings = recorded(own, Path(folder))
            cache = {"BENCH_COMPILED": tempfile.mkdtemp(dir=folder)}
            results[case.name] = run_case(own, settings | cache)
            console.print(make_table({case.name: results[case.name]}))
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "repeats": _REPEATS.value,
        "cases": results,
    }
    output = Path(_OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, report)
    console.print(make_table(results))
    if _CHECK.value and (lost := losses(results)):
        raise UserError("Slower than before. " + "; ".join(lost))


if __name__ == "__main__":
    app.run(main)
