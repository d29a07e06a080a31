"""Recommends for all histories of a file: `tssr recommend`."""

import functools
import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from tssr_jax.checkpoints.checkpointer import FOLDER
from tssr_jax.config.files import read_signed
from tssr_jax.config.saved import DATA_FILE, FILE_NAME, load_config
from tssr_jax.data_pipeline import fetching
from tssr_jax.data_pipeline.sources.text_files import read_blocks
from tssr_jax.engine import HERE, Place, open_engine, seen_by_all
from tssr_jax.errors import UserError, shown
from tssr_jax.recommending.forms import form_of
from tssr_jax.recommending.histories import Histories, History, by_name
from tssr_jax.recommending.lists_file import ListsFile
from tssr_jax.recommending.output import Output
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.recommending.results import Recommendations
from tssr_jax.reporting import make_console, make_progress, pairs_table

_BATCHES_AT_A_TIME = 4
# The most distinct unknown ids that are counted separately.
_MOST_UNKNOWN = 100_000


class Request(NamedTuple):
    """Arguments of `tssr recommend`.

    Attributes:
      input: file or folder of histories, see `Histories`.
      output: file or folder of lists, see `Output`.
      top_k: length of a list.
      keep_seen: see `Recommender.recommend`.
      new_items: table of items that training has not seen; None is none.
      only: file of the ids that may be recommended, one a line; None allows all.
      never: file of the ids that may not be recommended, one a line; None allows all.
      batch_size: histories ranked at a time.
      raw_dir: see `Recommender.from_workdir`.
      place: where the lists are computed.
    """

    input: Path
    output: str | Path
    top_k: int = 10
    keep_seen: bool | None = None
    new_items: Path | None = None
    only: Path | None = None
    never: Path | None = None
    batch_size: int = 256
    raw_dir: str | None = None
    place: Place = HERE


class _Report:
    """What became of the histories.

    Attributes:
      counts: by outcome.
      unknown: how often each unknown id occurs.
    """

    def __init__(self, top_k: int):
        self._top_k = top_k
        self.counts = Counter[str]()
        self.unknown = Counter[str]()

    def add(self, lists: list[Recommendations]) -> None:
        for result in lists:
            self.counts["histories"] += 1
            self.counts["popular"] += result.popular
            self.counts["short"] += len(result.items) < self._top_k
            self.counts["unknown"] += len(result.unknown)
            for item in result.unknown:
                if item in self.unknown or len(self.unknown) < _MOST_UNKNOWN:
                    self.unknown[item] += 1

    def add_report(self, other: "_Report") -> None:
        """Adds the report of further histories."""
        self.counts += other.counts
        for item, times in other.unknown.items():
            if item in self.unknown or len(self.unknown) < _MOST_UNKNOWN:
                self.unknown[item] += times

    def rows(self, seconds: float) -> list[tuple[str, str]]:
        counts, number = self.counts, self.counts["histories"]
        more = "at least " if len(self.unknown) == _MOST_UNKNOWN else ""
        rows = [
            ("histories", f"{number:,}"),
            ("ranked by the model", f"{number - counts['popular']:,}"),
            ("without a known item: popular items", f"{counts['popular']:,}"),
            ("lists of fewer items than asked for", f"{counts['short']:,}"),
            ("item ids skipped, not in the catalogue", f"{counts['unknown']:,}"),
            ("different ones among them", f"{more}{len(self.unknown):,}"),
        ]
        rows += [
            (f"  {shown(item, 60)}", f"{times:,}") for item, times in self.unknown.most_common(3)
        ]
        return [*rows, ("histories a second", f"{number / seconds:,.0f}")]


class _Block(NamedTuple):
    """The histories of a part of the output."""

    number: int
    histories: list[History]


class _Found(NamedTuple):
    """What a worker tells of a part that it has written.

    Attributes:
      number: of the part.
      report: of its histories.
      not_known: how many ids of `only` and of `never` are not in the catalogue.
    """

    number: int
    report: _Report
    not_known: tuple[int, int]


class _Lister:
    """A worker: ranks for the histories of blocks, and writes their parts of the output."""

    def __init__(
        self, workdir: str, request: Request, output: Output, only: Any, never: Any
    ) -> None:
        recommender = Recommender.from_workdir(
            workdir,
            raw_dir=request.raw_dir,
            new_items=request.new_items,
            batch_size=request.batch_size,
        )
        known = recommender.items.known
        self._not_known = (len(known(only or ())[1]), len(known(never or ())[1]))
        if only is not None or never is not None:
            recommender = recommender.restricted(only=only, never=never or ())
        self._recommender, self._request, self._output = recommender, request, output

    def __call__(self, block: _Block) -> _Found:
        report, request = _Report(self._request.top_k), self._request
        stream = iter(block.histories)
        with ListsFile(self._output.part(block.number)) as file:
            while some := list(itertools.islice(stream, _BATCHES_AT_A_TIME * request.batch_size)):
                lists = self._recommender.recommend(
                    **by_name(some), top_k=request.top_k, keep_seen=request.keep_seen
                )
                file.write(some, lists)
                report.add(lists)
        return _Found(block.number, report, self._not_known)


def run_recommend(workdir: epath.Path, request: Request) -> None:
    """Writes the lists and prints what became of the histories.

    Raises:
      UserError: if the run, a file, or a value makes no sense; there is no output then.
    """
    output = Output(str(request.output))
    output.require_apart(request.input)
    data = load_config(workdir).data
    report = read_signed(workdir / DATA_FILE)["report"]
    form = form_of(data, tuple(report.get("events", ())), report.get("profiles", ()))
    histories = Histories(request.input, form)
    only, never = (
        None if path is None else _read_ids(path) for path in (request.only, request.never)
    )
    own = request._replace(
        raw_dir=request.raw_dir and seen_by_all(request.raw_dir),
        new_items=request.new_items and request.new_items.absolute(),
    )
    make = functools.partial(_Lister, seen_by_all(str(workdir)), own, output, only, never)
    console = make_console()
    found: dict[int, _Found] = {}
    start, report = time.perf_counter(), _Report(request.top_k)
    with (
        output.written(_identity(workdir, request, histories)),
        open_engine(request.place) as engine,
        make_progress(console) as progress,
    ):
        task = progress.add_task("Recommending", total=histories.count(), message="")
        before = Counter[str]()

        def left() -> Iterator[_Block]:
            for block in _blocks(histories, output.histories_of_a_part):
                if output.has(block.number):
                    before["histories"] += len(block.histories)
                    progress.advance(task, len(block.histories))
                else:
                    yield block

        for number, part in engine.map(make, left()):
            output.require(part.number)
            progress.advance(task, part.report.counts["histories"])
            found[number] = part
    for number in sorted(found):  # in the order of the histories
        report.add_report(found[number].report)
    rows = report.rows(time.perf_counter() - start)
    if before["histories"]:
        rows.insert(0, ("histories of parts that were there before", f"{before['histories']:,}"))
    not_known = next(iter(found.values())).not_known if found else (0, 0)
    for path, number in zip((request.only, request.never), not_known, strict=True):
        if path is not None:
            rows.append((f"ids of {path} that are not in the catalogue", f"{number:,}"))
    console.print(pairs_table(str(output), rows))


def _blocks(histories: Histories, size: int) -> Iterator[_Block]:
    stream = iter(histories)
    for number in itertools.count():
        some = list(itertools.islice(stream, size))
        if not some:
            return
        yield _Block(number, some)


def _identity(workdir: epath.Path, request: Request, histories: Histories) -> dict[str, Any]:
    """What lists depend on: those of an interrupted call are kept if it is the same."""
    workdir = epath.Path(workdir)
    model = [path for name in (FILE_NAME, DATA_FILE) if (path := workdir / name).is_file()]
    steps = (workdir / FOLDER).iterdir() if (workdir / FOLDER).is_dir() else ()
    model += [path for step in steps for path in step.iterdir() if path.is_file()]
    model += [path for path in workdir.iterdir() if path.name.endswith(".safetensors")]
    files = [request.new_items, request.only, request.never]
    named = [(str(file.path), file.path.stat()) for file in histories.files]
    return {
        "run": str(workdir),
        "model": _digest(
            (str(path), path.stat().length, path.stat().mtime) for path in sorted(model)
        ),
        "input": _digest((name, stat.st_size, stat.st_mtime_ns) for name, stat in named),
        "top_k": request.top_k,
        "keep_seen": request.keep_seen,
        "filters": [file and fetching.file_sha256(file) for file in files],
    }


def _digest(values: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()


def _read_ids(path: Path) -> list[str]:
    """The ids of a file, one a line."""
    if not path.is_file():
        raise UserError(f"There is no file {path}: it should hold ids of items, one a line.")
    lines = (line for block in read_blocks(path) for line in block.lines())
    ids = [own for line in lines if (own := line.decode().strip())]
    if not ids:
        raise UserError(f"{path} is empty: it should hold ids of items, one a line.")
    return ids
