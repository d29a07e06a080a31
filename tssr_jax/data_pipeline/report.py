"""The preparation report: report.json for programs, a table and report.png for people."""

import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tssr_jax.data_pipeline.sequences import Sequences

FILE = "report.json"
PICTURE = "report.png"


def write(values: dict, sequences: Sequences, folder: Path) -> None:
    """Writes the picture and, last, the file."""
    _draw(sequences, folder / PICTURE)
    (folder / FILE).write_text(json.dumps(values, indent=2) + "\n")


def lines(values: dict) -> list[tuple[str, str]]:
    """The numbers of a report as (name, value) pairs for people."""
    return [
        (name.replace("_", " "), f"{value:,.3g}" if isinstance(value, float) else f"{value:,}")
        for name, value in values.items()
        if isinstance(value, int | float)
    ]


def show(values: dict) -> None:
    """Prints the report as a table."""
    table = Table(title=f"Data from {values['origin']}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in lines(values):
        table.add_row(name, value)
    # (A folder's name may hold square brackets.)
    Console(width=None if Console().is_terminal else 120, markup=False).print(table)


def _draw(sequences: Sequences, path: Path) -> None:
    """How long sequences are, and how often the items occur."""
    # Not at the top: it takes half a second, and prepared data is mostly found, not made.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    lengths, users = np.unique(sequences.lengths, return_counts=True)
    left.plot(lengths, users, ".", color="tab:blue")
    left.set(xscale="log", yscale="log", xlabel="interactions of a user", ylabel="users")
    popularity = np.sort(sequences.item_counts)[::-1]
    right.plot(np.arange(1, popularity.size + 1), popularity, color="tab:orange")
    right.set(
        xscale="log", yscale="log", xlabel="item, by popularity", ylabel="interactions of an item"
    )
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
