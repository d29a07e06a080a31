"""The preparation report: report.json for programs, a few lines and report.png for people."""

import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tssr_jax.data_pipeline.sequences import Sequences
from tssr_jax.data_pipeline.sources.values import ORDER
from tssr_jax.errors import shown

FILE = "report.json"
PICTURE = "report.png"
# The summary mentions ties above this share of neighbours in a history with equal times.
_MANY_TIES = 0.1
# And repeats above this share of the targets of validation and test.
_MANY_REPEATS = 0.05


def write(values: dict, sequences: Sequences, folder: Path) -> None:
    """Writes the picture and, last, the file."""
    _draw(sequences, folder / PICTURE)
    (folder / FILE).write_text(json.dumps(values, indent=2) + "\n")


def summary(values: dict, *, keep_seen: bool = False) -> list[str]:
    """The summary of a report, at most thirteen lines.

    Args:
      values: the report.
      keep_seen: `config.evaluate.keep_seen`.
    """
    dropped = values["interactions_read"] - values["interactions_kept"]
    lines = [
        f"{values['users']:,} users, {values['items']:,} items, {values['interactions_kept']:,} "
        f"interactions ({dropped:,} dropped){_dates(values)}",
        f"histories of up to {values['max_length']:,} items, half of them of up to "
        f"{values['length_percentile_50']:g}",
    ]
    if values.get("events"):
        asked = values["settings"]["target_events"]
        counts = values["events"].items()
        of_each = [f"{n:,} {name}{'' if name in asked else ' (read only)'}" for name, n in counts]
        lines.append(f"events: {shown(', '.join(of_each), 300)}")
    if values.get("profiles"):
        of_each = [f"{name} ({len(own)} values)" for name, own in values["profiles"].items()]
        lines.append(f"of users: {shown(', '.join(of_each), 300)}")
    for name, text in (
        ("interactions_dropped_as_repeats", "interactions were dropped as repeats"),
        ("lines_skipped_as_malformed", "malformed lines were skipped"),
        ("users_without_a_row_in_the_users_file", "users have no row in the users file"),
        ("items_without_a_row_in_the_item_file", "items have no row in the items file"),
        ("items_whose_id_was_mended", "items are written differently in the two files"),
        ("items_without_content", "items have neither a text nor a picture"),
        ("item_rows_that_disagree", "rows describe an item differently than the first one"),
    ):
        if values.get(name):
            lines.append(f"{values[name]:,} {text}")
    if values["share_of_tied_neighbours"] > _MANY_TIES:
        share = values["share_of_tied_neighbours"]
        lines.append(f"{share:.0%} of neighbours in a history have equal times: a hash orders them")
    of_1970 = values.get("last_date", "").startswith("1970")
    if of_1970 and not values["settings"].get("timestamp_format"):
        lines.append(
            "all times are in 1970: numbers count as seconds, and items of one minute have no order"
        )
        lines.append(
            f"(for places in an order, 1, 2, 3, ...: --config.data.timestamp_format={ORDER})"
        )
    if not values.get("events"):  # else the splits tell which targets there are
        lines += of_repeats(values["share_of_answers_that_the_user_had_before"], keep_seen)
    return lines


def of_repeats(again: float, keep_seen: bool) -> list[str]:
    """A line about this share of answers that their users had before; none if it is small."""
    if again <= _MANY_REPEATS:
        return []
    told = f"{again:.0%} of the targets are items that the user had before: they"
    if keep_seen:
        return [f"{told} may be recommended (evaluate.keep_seen=True)"]
    return [
        f"{told} count as missed, unless --config.evaluate.keep_seen=True lets them be recommended"
    ]


def _dates(values: dict) -> str:
    """From when to when; data that an older version prepared does not tell."""
    if "first_date" not in values:
        return ""
    return f", {values['first_date']} to {values['last_date']}"


def show(values: dict, *, everything: bool = False) -> None:
    """Prints the summary, or all numbers as a table."""
    # (A folder's name may hold square brackets.)
    console = Console(width=None if Console().is_terminal else 120, markup=False, highlight=False)
    if not everything:
        console.print(f"Data from {values['origin']}:")
        for line in summary(values):
            console.print(f"  {line}")
        return
    table = Table(title=f"Data from {values['origin']}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in values.items():
        if isinstance(value, int | float):
            text = f"{value:,.3g}" if isinstance(value, float) else f"{value:,}"
            table.add_row(name.replace("_", " "), text)
        elif name.endswith("_date"):
            table.add_row(name.replace("_", " "), value)
    console.print(table)


def _draw(sequences: Sequences, path: Path) -> None:
    """How long histories are, and how often items occur."""
    # Imported here: it takes half a second, and data is mostly found in the cache.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import NullFormatter  # noqa: PLC0415

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, counts, name in zip(
        figure.subplots(1, 2),
        (sequences.lengths, sequences.item_counts),
        ("user", "item"),
        strict=True,
    ):
        ends = max(1, counts.min()), counts.max() + 1
        axes.hist(counts, np.geomspace(*ends, 30), color="tab:blue")
        axes.set(xscale="log", title=f"Interactions of a{'n' * (name == 'item')} {name}")
        axes.set(xlabel="interactions", ylabel=f"{name}s")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
