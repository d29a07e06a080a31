"""Recommends for all histories of a file: `tssr recommend`."""

import itertools
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from etils import epath

from tssr_jax.config.saved import load_config
from tssr_jax.errors import UserError, shown
from tssr_jax.recommending.histories import HistoryFile
from tssr_jax.recommending.lists_file import ListsFile
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.recommending.results import Recommendations
from tssr_jax.reporting import make_console, make_progress, pairs_table

_BATCHES_AT_A_TIME = 4
# The most distinct unknown ids that are counted separately.
_MOST_UNKNOWN = 100_000


class Request(NamedTuple):
    """Arguments of `tssr recommend`.

    Attributes:
      input: file of histories, see `HistoryFile`.
      output: file of lists, see `ListsFile`.
      top_k: length of a list.
      keep_seen: see `Recommender.recommend`.
      new_items: table of items that training has not seen; None is none.
      only: file of the ids that may be recommended, one a line; None allows all.
      never: file of the ids that may not be recommended, one a line; None allows all.
      batch_size: histories ranked at a time.
      raw_dir: see `Recommender.from_workdir`.
    """

    input: Path
    output: Path
    top_k: int = 10
    keep_seen: bool | None = None
    new_items: Path | None = None
    only: Path | None = None
    never: Path | None = None
    batch_size: int = 256
    raw_dir: str | None = None


class _Report:
    """What became of the histories."""

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
        rows += [(f"  {item}", f"{times:,}") for item, times in self.unknown.most_common(3)]
        return [*rows, ("histories a second", f"{number / seconds:,.0f}")]


def run_recommend(workdir: epath.Path, request: Request) -> None:
    """Writes the file of lists and prints what became of the histories.

    Raises:
      UserError: if the run, a file, or a value makes no sense; there is no output then.
    """
    if request.output.resolve() == request.input.resolve():
        raise UserError(f"--output is --input, {request.input}: name another file.")
    data = load_config(workdir).data
    columns = (data.user_column, data.item_column, data.timestamp_column)
    histories = HistoryFile(request.input, *columns, data.timestamp_format)
    output = ListsFile(request.output)
    only, never = (
        None if path is None else _read_ids(path) for path in (request.only, request.never)
    )
    recommender = Recommender.from_workdir(
        workdir,
        raw_dir=request.raw_dir,
        new_items=request.new_items,
        batch_size=request.batch_size,
    )
    if only is not None or never is not None:
        recommender = recommender.restricted(only=only, never=never or ())
    console, report = make_console(), _Report(request.top_k)
    start, stream = time.perf_counter(), iter(histories)
    with output, make_progress(console) as progress:
        task = progress.add_task("Recommending", total=histories.count(), message="")
        while some := list(itertools.islice(stream, _BATCHES_AT_A_TIME * request.batch_size)):
            lists = recommender.recommend(
                [history.items for history in some],
                request.top_k,
                times=[history.times for history in some],
                keep_seen=request.keep_seen,
            )
            output.write(some, lists)
            report.add(lists)
            progress.advance(task, len(some))
    rows = report.rows(time.perf_counter() - start)
    for path, ids in ((request.only, only), (request.never, never)):
        if ids is not None:
            unknown = len(recommender.items.known(ids)[1])
            rows.append((f"ids of {path} that are not in the catalogue", f"{unknown:,}"))
    console.print(pairs_table(str(request.output), rows))


def _read_ids(path: Path) -> list[str]:
    """The ids of a file, one a line."""
    if not path.is_file():
        raise UserError(f"There is no file {path}: it should hold ids of items, one a line.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 ({shown(error)}). Convert it: iconv -f latin1 -t utf8."
        ) from error
    ids = [line.strip() for line in text.split("\n") if line.strip()]
    if not ids:
        raise UserError(f"{path} is empty: it should hold ids of items, one a line.")
    return ids
