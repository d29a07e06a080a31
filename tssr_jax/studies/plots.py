"""Pictures of a report, as SVG."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tssr_jax.reporting import METRICS_FILE
from tssr_jax.studies.findings import Finding
from tssr_jax.studies.groups import Group
from tssr_jax.studies.trial import Trial

_INCHES_PER_LINE = 0.35


def estimates(findings: Sequence[Finding], metric: str, first: str) -> str:
    """Means and 95% intervals of all variants, with a line at the mean of `first`."""
    figure, axes = _figure(len(findings))
    for place, own in enumerate(findings):
        mean, low, high = own.estimates[metric]
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color="#2457a6")
        if own.name == first:
            axes.axvline(mean, color="#999", linewidth=1, zorder=0)
    axes.set_yticks(range(len(findings)), [own.name for own in findings])
    axes.invert_yaxis()
    axes.set_xlabel(f"{metric}, mean over users and its 95% interval")
    return _svg(figure)


def learning_curves(trials: Sequence[Trial]) -> str:
    """Validation NDCG@10 by epoch, of each variant's first seed."""
    figure, axes = _figure(12)
    drawn: set[str] = set()
    for trial in trials:
        path = trial.run / METRICS_FILE
        if trial.variant in drawn or not path.exists():
            continue
        drawn.add(trial.variant)
        records = [json.loads(line) for line in path.read_text().splitlines()]
        curve = [r for r in records if "validation/ndcg@10" in r]
        epochs = [r["epoch"] for r in curve]
        axes.plot(epochs, [r["validation/ndcg@10"] for r in curve], label=trial.variant)
    if not drawn:
        return ""
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation NDCG@10")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _svg(figure)


def cost(findings: Sequence[Finding]) -> str:
    """Seconds of an epoch against NDCG@10."""
    trained = [own for own in findings if "seconds_per_epoch" in own.cost]
    if not trained:
        return ""
    figure, axes = _figure(12)
    for own in trained:
        x, y = own.cost["seconds_per_epoch"], own.estimates["ndcg@10"].mean
        axes.scatter(x, y, color="#2457a6")
        axes.annotate(own.name, (x, y), fontsize="small", textcoords="offset points", xytext=(5, 3))
    axes.set_xlabel("seconds of an epoch")
    axes.set_ylabel("NDCG@10")
    return _svg(figure)


def groups(title: str, by_variant: Mapping[str, Sequence[Group]]) -> str:
    """NDCG@10 of each group, a line for each variant."""
    figure, axes = _figure(12)
    for name, own in by_variant.items():
        axes.plot([group.name for group in own], [group.ndcg for group in own], "o-", label=name)
    axes.set_title(title)
    axes.set_ylabel("NDCG@10")
    axes.legend(fontsize="small")
    return _svg(figure)


def _figure(lines: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(9, 1.2 + _INCHES_PER_LINE * lines), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The picture without its date, so that equal results give equal files."""
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "tssr_jax", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
