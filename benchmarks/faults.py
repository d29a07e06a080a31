"""Faults on purpose: kills, damaged files, a full disk, moves, two writers, lost processes.

    python -m benchmarks.faults

A small run is trained without any fault. Then each fault is tried on a copy. What comes of it is

    same    the numbers of the run without faults, to the last digit
    told    an error of one paragraph, or a line that says what is damaged and what is used instead
    WRONG   other numbers without a word, a traceback, or no end

The program prints a table, writes --output, and fails if anything is WRONG.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import app, flags
from rich.console import Console
from rich.table import Table

_KILLS = flags.DEFINE_integer("kills", 24, "Kills at random moments.", 0)
_WAYS = flags.DEFINE_integer("ways", 4, "Ways of damage that are tried on a file, of four.", 1, 4)
_JOBS = flags.DEFINE_integer("jobs", 2, "Faults that are tried at a time.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of moments and places.")
_KINDS = ("kills", "damage", "full_disks", "two_writers", "peers", "move")
_ONLY = flags.DEFINE_list("only", list(_KINDS), "Kinds of faults.")
_OUTPUT = flags.DEFINE_string("output", "faults.json", "File with all outcomes.")

_ROOT = Path(__file__).parents[1]
_SECONDS = 240.0  # until a program counts as hanging
_HISTORIES = [{"items": ["i3", "i4", "i5"]}, {"items": ["i9"]}, {"items": []}]
_FIELDS = {
    "content.text.encoder": "ngrams",
    "content.text.ngram_width": 32,
    "model.d_model": 16,
    "model.d_ffn": 16,
    "model.num_heads": 2,
    "model.max_length": 10,
    "train.batch_size": 32,
    "train.num_epochs": 2,
    "train.window_stride": 10,
    "train.checkpoint_every_steps": 7,
}  # fmt: skip  (The newest checkpoint is the best one, which evaluation reads.)


def _flipped(old: bytes, at: int) -> bytes:
    return old[:at] + bytes([old[at] ^ 64]) + old[at + 1 :]


# What damage leaves of a file, given a place in it; None removes it.
_CHANGES: dict[str, Callable[[bytes, int], bytes] | None] = {
    "a flipped byte": _flipped,
    "half of it": lambda old, _: old[: len(old) // 2],
    "empty": lambda _, __: b"",
    "removed": None,
}


@dataclasses.dataclass
class Outcome:
    """What came of one fault."""

    kind: str
    fault: str
    outcome: str
    words: str


@dataclasses.dataclass
class Place:
    """A folder with raw files, a cache, and a run: raw/, cache/, run/."""

    folder: Path

    def copy(self, to: Path) -> "Place":
        """A copy, in the place of what was there before."""
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.folder, to)
        return Place(to)

    def command(self, mode: str, *options: str) -> list[str]:
        """A command of the program."""
        own = [sys.executable, "-m", "tssr_jax.main", f"--mode={mode}"]
        own.append(f"--workdir={self.folder / 'run'}")
        if mode == "train":
            own.append(f"--config=csv:{self.folder / 'raw'}")
            fields = _FIELDS | {"data.cache_dir": str(self.folder / "cache")}
            own += [f"--config.{name}={value}" for name, value in fields.items()]
        if mode == "recommend":
            histories = self.folder / "histories.jsonl"
            histories.write_text("".join(json.dumps(one) + "\n" for one in _HISTORIES))
            lists = self.folder / "lists.jsonl"
            lists.unlink(missing_ok=True)
            own += [f"--input={histories}", f"--output={lists}"]
        return [*own, *options]

    def result(self) -> dict[str, object]:
        """Metrics and losses of the run, and its lists, as far as they are there."""
        run, lists = self.folder / "run", self.folder / "lists.jsonl"
        found: dict[str, object] = {}
        if (run / "test_metrics.json").is_file():
            found["test"] = json.loads((run / "test_metrics.json").read_text())
        if lists.is_file():
            found["lists"] = lists.read_text()
        return found


class Campaign:
    """Tries faults, and keeps what came of them.

    Args:
      folder: for everything.
      console: where people read.
    """

    def __init__(self, folder: Path, console: Console):
        self.outcomes: list[Outcome] = []
        self._console = console
        self._folder = folder
        self._random = random.Random(_SEED.value)
        self._environment = dict(os.environ, JAX_COMPILATION_CACHE_DIR=str(folder / "compiled"))
        self._raw = Place(folder / "raw_only")
        _write_raw(self._raw.folder / "raw")
        # Twice: the first compiles what all others find in the cache.
        for _ in range(2):
            self._good = self._raw.copy(folder / "good")
            begin = time.monotonic()
            self._require_well(self._good.command("train"))
            self._seconds = time.monotonic() - begin
        self._require_well(self._good.command("recommend"))
        self._expected = self._good.result()

    def kills(self) -> Iterator[Callable[[Path], None]]:
        """Kills at random moments of training; the same command goes on."""
        ways = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
        for number in range(_KILLS.value):
            times = self._random.choice((1, 1, 3))
            moments = [self._random.uniform(0.5, self._seconds) for _ in range(times)]
            yield functools.partial(self._kill, ways[number % len(ways)], moments)

    def _kill(self, way: signal.Signals, moments: list[float], folder: Path) -> None:
        place = self._raw.copy(folder)
        for moment in moments:
            process = self._start(place.command("train"))
            time.sleep(moment)
            process.send_signal(way)
            process.communicate()
        after = ", ".join(f"{moment:.1f} s" for moment in moments)
        self._require("kill", f"{way.name} after {after}", place, "train")

    def damage(self) -> Iterator[Callable[[Path], None]]:
        """Each kind of file: a byte that differs, half of it, nothing of it, none."""
        for mode, path in _kinds_of_files(self._good.folder):
            size = path.stat().st_size
            for way in self._random.sample(sorted(_CHANGES), _WAYS.value) if size else ():
                at = self._random.randrange(size)
                yield functools.partial(self._damage, mode, path, way, at)

    def _damage(self, mode: str, path: Path, way: str, at: int, folder: Path) -> None:
        place, change = self._good.copy(folder), _CHANGES[way]
        inside = path.relative_to(self._good.folder)
        damaged = folder / inside
        if change is None:
            damaged.unlink()
        else:
            damaged.write_bytes(change(damaged.read_bytes(), at))
        self._require("damage", f"{inside}, {way}", place, mode)

    def full_disks(self) -> Iterator[Callable[[Path], None]]:
        """Files can't grow beyond a size; later they can."""
        for most in (0, 1_000, 20_000, 200_000):
            yield functools.partial(self._fill, most)

    def _fill(self, most: int, folder: Path) -> None:
        place = self._raw.copy(folder)

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

        code, words = _ended(self._start(place.command("train"), preexec_fn=limit))
        outcome = "same" if code == 0 else _told(code, words)
        self._keep("full disk", f"files of at most {most:,} bytes", outcome, words)
        self._require("full disk", f"afterwards, {most:,} bytes", place, "train")

    def two_writers(self) -> Iterator[Callable[[Path], None]]:
        """Two trainings of one run, at once or one after the other."""
        for pause in (0.0, 0.5, self._seconds / 2):
            yield functools.partial(self._write_twice, pause)

    def _write_twice(self, pause: float, folder: Path) -> None:
        place = self._raw.copy(folder)
        first = self._start(place.command("train"))
        time.sleep(pause)
        second = self._start(place.command("train"))
        ends = [_ended(process) for process in (first, second)]
        refused = [words for code, words in ends if code and "Error: " in words]
        well = sorted(code for code, _ in ends) == [0, 1]
        well &= place.result() == {"test": self._expected["test"]}
        outcome = "same" if well and refused else "WRONG"
        self._keep("two writers", f"{pause:.1f} s apart", outcome, " | ".join(refused))

    def peers(self) -> Iterator[Callable[[Path], None]]:
        """One of two processes is killed or frozen."""
        for way, victim in ((signal.SIGKILL, 1), (signal.SIGSTOP, 1), (signal.SIGSTOP, 0)):
            yield functools.partial(self._lose_peer, way, victim)

    def _lose_peer(self, way: signal.Signals, victim: int, folder: Path) -> None:
        place = self._raw.copy(folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        together = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--peer_timeout=20"]
        together += ["--config.train.num_epochs=100000", "--config.num_devices=0"]
        together += ["--config.train.early_stopping_patience=0"]
        both = [
            self._start(place.command("train", *together, f"--process_id={i}")) for i in range(2)
        ]
        deadline = time.monotonic() + _SECONDS
        while not (folder / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        both[victim].send_signal(way)
        code, words = _ended(both[1 - victim])
        both[victim].kill()
        both[victim].communicate()
        self._keep("peer", f"{way.name} to process {victim} of 2", _told(code, words), words)

    def move(self) -> None:
        """The run alone, elsewhere: no raw files, no cache."""
        place = Place(self._folder / "moved")
        shutil.copytree(self._good.folder / "run", place.folder / "run")
        away = self._good.folder.rename(self._folder / "away")
        try:
            self._require("move", "the run alone", place, "recommend")
        finally:
            away.rename(self._good.folder)

    def run(self, names: Sequence[str]) -> None:
        """Tries the faults of these methods, some at a time, each in a folder of its own."""
        faults = [fault for name in names if name != "move" for fault in getattr(self, name)()]

        def try_one(number: int) -> None:
            folder = self._folder / str(number)
            faults[number](folder)
            shutil.rmtree(folder, ignore_errors=True)

        with concurrent.futures.ThreadPoolExecutor(_JOBS.value) as pool:
            list(pool.map(try_one, range(len(faults))))
        if "move" in names:  # nothing else may read what it takes away
            self.move()

    def _start(self, command: list[str], **options: object) -> subprocess.Popen[str]:
        return subprocess.Popen(  # type: ignore[call-overload]
            command,
            cwd=_ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            **options,
        )

    def _require_well(self, command: list[str]) -> None:
        code, words = self._run(command)
        if code:
            raise SystemExit(f"without any fault: {words}")

    def _run(self, command: list[str]) -> tuple[int, str]:
        return _ended(self._start(command))

    def _require(self, kind: str, fault: str, place: Place, mode: str) -> None:
        """Runs a command, and compares what comes of it with the run without faults."""
        what = "lists" if mode == "recommend" else "test"
        (place.folder / "lists.jsonl").unlink(missing_ok=True)
        if mode == "evaluate":
            (place.folder / "run" / "test_metrics.json").unlink(missing_ok=True)
        code, words = self._run(place.command(mode))
        if code == 0 and place.result().get(what) == self._expected[what]:
            outcome = "same"
        elif code == 0:
            outcome = "told" if "damaged" in words else "WRONG"
        else:
            outcome = _told(code, words)
        self._keep(kind, fault, outcome, words)

    def _keep(self, kind: str, fault: str, outcome: str, words: str) -> None:
        self.outcomes.append(Outcome(kind, fault, outcome, words[-2000:]))
        self._console.print(f"{outcome:<6}{kind}: {fault}", highlight=False, soft_wrap=True)
        if outcome == "WRONG":
            self._console.print(words[-2000:], markup=False)


def _ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        words, _ = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        words, _ = process.communicate()
        words += "\nTraceback: it hangs"
    return process.returncode, words


def _told(code: int, words: str) -> str:
    well = code == 1 and "Error: " in words and "Traceback" not in words and "Fatal" not in words
    return "told" if well else "WRONG"


def _kinds_of_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """One file of each kind, the largest, and the command that reads it."""
    kinds: dict[tuple[str, ...], Path] = {}
    checkpoints = folder / "run" / "checkpoints"
    older = sorted(checkpoints.iterdir(), key=lambda path: int(path.name))[:-1]
    for path in sorted(folder.rglob("*"), key=lambda path: path.stat().st_size):
        parts = path.relative_to(folder).parts
        if any(step in path.parents for step in older):
            continue
        if path.is_file() and parts[0] != "raw" and "tensorboard" not in parts:
            names = [part for part in parts[:-1] if not _made_up(part)]
            kinds[*names, path.suffix if _made_up(path.stem) else path.name] = path
    for path in kinds.values():
        parts = path.relative_to(folder).parts
        if parts[0] == "cache":
            yield "train", path  # once more: it reads all, and tests
        elif parts[0] == "run" and not parts[-1].endswith((".png", ".npz", "metrics.json")):
            yield "recommend" if "catalogue" in parts else "evaluate", path


def _made_up(name: str) -> bool:
    """Whether a name is a number or a hash, as those of steps and of keys."""
    return sum(letter.isdigit() for letter in name) > len(name) / 4


def _write_raw(folder: Path) -> None:
    """Users who walk along the items, so that there is something to learn."""
    random_ = random.Random(1)
    rows = ["user,item,timestamp"]
    for user in range(200):
        start = random_.randrange(60)
        rows += [
            f"u{user},i{(start + time) % 60},{1_500_000_000 + 90_000 * time + user}"
            for time in range(random_.randrange(6, 14))
        ]
    words = ("red", "blue", "green", "car", "boat", "plane", "game", "puzzle", "big", "small")
    titles = [f"i{i},{words[i % 10]} {words[(3 * i + 1) % 10]}" for i in range(60)]
    folder.mkdir(parents=True)
    (folder / "interactions.csv").write_text("\n".join(rows) + "\n")
    (folder / "items.csv").write_text("\n".join(["item,title", *titles]) + "\n")


def main(_: list[str]) -> None:
    """Tries all, prints a table, and fails if anything is wrong."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        campaign = Campaign(Path(temporary), console)
        campaign.run(_ONLY.value)
    table = Table("fault", "tried", "same", "told", "WRONG")
    by_kind: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for one in campaign.outcomes:
        by_kind[one.kind][one.outcome] += 1
    for kind, counts in by_kind.items():
        numbers = [counts[name] for name in ("same", "told", "WRONG")]
        table.add_row(kind, *map(str, [sum(numbers), *numbers]))
    console.print(table)
    Path(_OUTPUT.value).write_text(
        json.dumps([dataclasses.asdict(one) for one in campaign.outcomes], indent=1)
    )
    sys.exit(any(one.outcome == "WRONG" for one in campaign.outcomes))


if __name__ == "__main__":
    app.run(main)
