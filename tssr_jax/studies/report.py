"""The report of a study: a table, and a self-contained page with pictures."""

import html
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from rich.console import Console
from rich.table import Table

from tssr_jax.config.files import write_whole
from tssr_jax.studies import plots
from tssr_jax.studies.designs import Study
from tssr_jax.studies.findings import METRICS, SPLIT, Finding, find, per_user
from tssr_jax.studies.groups import Group, group_metrics
from tssr_jax.studies.trial import Trial

BEST = " ★"
# Heading of the metrics of refits.
REFITTED = "Test after a refit, with the validation targets in the training data"
_CSS = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .85rem; }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .5rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 2rem 0; } figcaption { font-weight: 600; } svg { max-width: 100%; height: auto; }
"""


def write_report(
    name: str, study: Study, trials: Sequence[Trial], workdir: epath.Path, console: Console
) -> None:
    """Writes report.md and report.html, and prints the table.

    Args:
      name: of the study.
      study: gives the order of the variants.
      trials: the trials that have ended.
      workdir: where the files go.
      console: where the table goes.
    """
    if not trials:
        return
    findings = find(study, trials)
    order = [own.name for own in findings]
    trials = sorted(trials, key=lambda trial: order.index(trial.variant))
    header, rows = _table(findings)
    _print_table(console, f"{name}, {SPLIT}: {study.question}", header, rows)
    by_group = groups_of(trials) if study.by_group else {}
    notes = _notes(trials)
    tables = {"": (header, rows)}
    again = [trial.refitted() for trial in trials if trial.has_refit]
    if again:
        tables[REFITTED] = _table(find(study, again))
        _print_table(console, f"{name}, {REFITTED}", *tables[REFITTED])
    tables |= {"Lists": _lists_table(findings), "Cost": _cost_table(findings)}
    tables |= {title: _group_table(own) for title, own in by_group.items()}
    tables["Settings"] = _settings_table(trials)
    write_whole(workdir / "report.md", _markdown(f"{name}: {study.question}", tables, notes))
    first = study.variants[0].name
    # Below which table, and what it shows.
    pictures = {"": [(metric, plots.estimates(findings, metric, first)) for metric in METRICS]}
    pictures[""].append(("Validation NDCG@10 by epoch", plots.learning_curves(trials)))
    pictures["Cost"] = [("Seconds of an epoch against NDCG@10", plots.cost(findings))]
    pictures |= {title: [("", plots.groups(title, own))] for title, own in by_group.items()}
    page = _page(f"{name}: {study.question}", tables, notes, pictures)
    write_whole(workdir / "report.html", page)
    console.print(f"{workdir / 'report.html'}")


def _print_table(
    console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    table = Table(*header, title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def groups_of(trials: Sequence[Trial]) -> dict[str, dict[str, list[Group]]]:
    """Metrics of each group, means over seeds, by kind of group and by variant.

    The first variant's training defines popularity, so that a group has the same users in each row.
    """
    variants: dict[str, dict[int, Mapping[str, np.ndarray]]] = {}
    for trial in trials:
        variants.setdefault(trial.variant, {})[trial.config.seed] = per_user(trial)
    first = next(iter(variants.values()))
    own = {}
    for name, seeds in variants.items():
        counts = [
            _of_same_catalogue(first.get(seed, users), users) for seed, users in seeds.items()
        ]
        own[name] = group_metrics(list(seeds.values()), SPLIT, counts)
    kinds = list(dict.fromkeys(kind for groups in own.values() for kind in groups))
    return {
        kind: {name: groups[kind] for name, groups in own.items() if kind in groups}
        for kind in kinds
    }


def _of_same_catalogue(
    users: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]
) -> np.ndarray:
    """The counts of `users`, or of `others` if these belong to another data set."""
    same = np.array_equal(users[f"{SPLIT}_answer"], others[f"{SPLIT}_answer"])
    return (users if same else others)["counts"]


Rows = tuple[list[str], list[list[str]]]


def _table(findings: Sequence[Finding]) -> Rows:
    header = ["variant", "seeds"]
    for metric in METRICS:
        header += [f"{metric} [95%]", "sd over seeds", f"vs {findings[0].name}", "p (Holm)"]
    best = {metric: max(own.estimates[metric].mean for own in findings) for metric in METRICS}
    rows = []
    for own in findings:
        row = [own.name, str(own.seeds)]
        for metric in METRICS:
            mean, low, high = own.estimates[metric]
            mark = BEST if mean == best[metric] else ""
            row.append(f"{mean:.4f}{mark} [{low:.4f}, {high:.4f}]")
            row.append("" if np.isnan(own.spread[metric]) else f"±{own.spread[metric]:.4f}")
            row += _comparison(own, findings[0], metric)
        rows.append(row)
    return header, rows


def _comparison(own: Finding, first: Finding, metric: str) -> list[str]:
    comparison = own.comparisons[metric]
    if comparison is None:
        return ["", ""]
    base, change = first.estimates[metric].mean, comparison.difference.mean
    text = f"{change / base:+.1%}" if base else f"{change:+.4f}"
    return [text, f"{comparison.adjusted_p:.4f}"]


def _lists_table(findings: Sequence[Finding]) -> Rows:
    # What one variant lacks (a space of vectors) is left empty.
    names = list(dict.fromkeys(name for own in findings for name in own.lists))
    rows = [
        [own.name, *(f"{own.lists[n]:.4g}" if n in own.lists else "" for n in names)]
        for own in findings
    ]
    return ["variant", *names], rows


def _cost_table(findings: Sequence[Finding]) -> Rows:
    formats = {
        "parameters": ("parameters", "{:,.0f}"),
        "seconds_per_epoch": ("s an epoch", "{:.1f}"),
        "epochs": ("epochs", "{:.1f}"),
        "best_epoch": ("best epoch", "{:.1f}"),
        "request_ms": ("ms a request", "{:.1f}"),
        "peak_gib": ("peak GiB", "{:.2f}"),
    }
    rows = [
        [
            own.name,
            *(
                form.format(own.cost[n]) if n in own.cost else ""
                for n, (_, form) in formats.items()
            ),
        ]
        for own in findings
    ]
    return ["variant", *(title for title, _ in formats.values())], rows


def _group_table(by_variant: Mapping[str, Sequence[Group]]) -> Rows:
    # Variants of other data may have other groups: the first that has one tells its users.
    users: dict[str, int] = {}
    for own in by_variant.values():
        for group in own:
            users.setdefault(group.name, group.users)
    rows = []
    for name, own in by_variant.items():
        ndcg = {group.name: f"{group.ndcg:.4f}" for group in own}
        rows.append([name, *(ndcg.get(group, "") for group in users)])
    return ["variant", *(f"{group} ({number:,})" for group, number in users.items())], rows


def _settings_table(trials: Sequence[Trial]) -> Rows:
    changes = {trial.variant: trial.changes for trial in trials}
    rows = [
        [name, ", ".join(f"{field}={value}" for field, value in own.items())]
        for name, own in changes.items()
    ]
    return ["variant", "what it changes"], rows


def _notes(trials: Sequence[Trial]) -> str:
    results = [trial.result() or {} for trial in trials]
    machines = sorted({result["machine"] for result in results})
    dates = sorted({result["date"] for result in results})
    one_seed = len({trial.config.seed for trial in trials}) == 1
    late = sum(bool(result["time_limit_reached"]) for result in results)
    return (
        f"{len(trials)} trials, {dates[0]} to {dates[-1]}, on {'; '.join(machines)}. Best "
        "checkpoint by validation NDCG@10. Intervals and paired p-values: bootstrap over users and "
        "seeds; Holm's adjustment over the variants. "
        f"{BEST} marks the best. "
        + ("One seed: the variance between trainings is not included. " if one_seed else "")
        + (f"{late} trial(s) reached the time limit." if late else "")
    ).strip()


def _markdown(title: str, tables: Mapping[str, Rows], notes: str) -> str:
    parts = [f"# {title}\n\n{notes}\n"]
    for name, (header, rows) in tables.items():
        lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
        heading = f"\n## {name}\n" if name else ""
        parts.append(heading + "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    return "".join(parts)


def _page(
    title: str,
    tables: Mapping[str, Rows],
    notes: str,
    pictures: Mapping[str, Sequence[tuple[str, str]]],
) -> str:
    parts = [f"<h1>{html.escape(title)}</h1><p>{html.escape(notes)}</p>"]
    for name, (header, rows) in tables.items():
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
        )
        heading = f"<h2>{html.escape(name)}</h2>" if name else ""
        parts.append(f"{heading}<table><tr>{head}</tr>{body}</table>")
        parts += [
            f"<figure><figcaption>{html.escape(caption)}</figcaption>{picture}</figure>"
            for caption, picture in pictures.get(name, ())
            if picture
        ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_CSS}</style>{''.join(parts)}</html>\n"
    )
