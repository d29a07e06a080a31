"""Output of a run: progress bar and tables for people, metrics.jsonl and TensorBoard for tools."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import rich
from etils import epath
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from tssr_jax.config.files import write_whole
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.errors import UserError

METRICS_FILE = "metrics.jsonl"


def make_console(*, quiet: bool = False) -> Console:
    """A console whose tables are not cut when the output is a file; a quiet one prints nothing.

    Square brackets are printed as they are, since paths, ids and logs may contain them.
    """
    console = Console(
        soft_wrap=False, highlight=False, markup=False, quiet=quiet, **_of_notebooks()
    )
    if not console.is_terminal:
        console.width = 120
    return console


def _of_notebooks() -> dict[str, Any]:
    """Settings of a console: rich needs ipywidgets to show bars in a notebook; else plain text."""
    if "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is None:
        return {"force_jupyter": False, "force_terminal": False}
    return {}


def adapt_to_notebooks() -> None:
    """Has rich's own console, which some bars use, do as `make_console` does."""
    if settings := _of_notebooks():
        rich.reconfigure(**settings)


def make_progress(console: Console) -> Progress:
    """A progress bar with rate, remaining time and a message; silent without a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[message]}", markup=False),
        console=console,
        disable=console.quiet or not console.is_terminal,
        transient=True,
    )


def metrics_table(
    title: str,
    columns: Iterable[str],
    rows: Mapping[str, Iterable[float | int | None]],
    caption: str = "",
) -> Table:
    """A table of metrics; None leaves a cell empty.

    Args:
      title: title of the table.
      columns: names of the columns.
      rows: by metric, the values of the columns.
      caption: text below the table.
    """
    table = Table(title=title, caption=caption)
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    for metric, values in rows.items():
        table.add_row(metric, *map(_number, values))
    return table


def _number(value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def pairs_table(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """A table of names and values."""
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name, value)
    return table


class MetricWriter:
    """Appends records to metrics.jsonl and to TensorBoard's event files.

    Args:
      workdir: the run's folder.
      from_step: records of later steps are dropped first: the resumed run writes them again.
      also: gets each record, too.
      silent: write nothing, because another process writes.
    """

    def __init__(
        self,
        workdir: epath.Path,
        from_step: int,
        *,
        also: Callable[[int, Mapping[str, float | int]], None] | None = None,
        silent: bool = False,
    ):
        self._path = workdir / METRICS_FILE
        self._silent, self._also = silent, also
        if silent:
            return
        self._drop_after(from_step)
        self._events = tf.summary.create_file_writer(str(workdir / "tensorboard"))

    def write(self, step: int, record: Mapping[str, float | int]) -> None:
        """Writes one record; every number becomes a TensorBoard scalar."""
        if self._silent:
            return
        try:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **record}) + "\n")
        except OSError as error:
            raise UserError(
                f"{self._path} can't be written ({error.strerror}). The last checkpoint is whole; "
                "when there is room again, the same command goes on from there."
            ) from error
        with self._events.as_default(step=step):
            for name, value in record.items():
                tf.summary.scalar(name, value)
        self._events.flush()
        if self._also:
            self._also(step, record)

    def _drop_after(self, step: int) -> None:
        if not self._path.exists():
            return
        lines = self._path.read_text().splitlines(keepends=True)
        write_whole(self._path, "".join(line for line in lines if _is_up_to(line, step)))


def _is_up_to(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except json.JSONDecodeError:
        return False  # the line that was being written when the run was killed
