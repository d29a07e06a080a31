"""The model card of a saved run: README.md, as the Hugging Face Hub shows it."""

import json
from typing import Any

from tssr_jax.evaluation.run_metrics import RunMetrics
from tssr_jax.run import Run

FILE_NAME = "README.md"
_METRICS = ("ndcg@10", "recall@10", "ndcg@20", "recall@20", "mrr")
_OF_LISTS = ("coverage@10", "gini@10", "novelty@10", "popularity_lift@10")
_SEQUENCES = "**ids and histories of all users: don't publish it**"
_NO_SEQUENCES = "no user's history"
_STREAMS = {
    "id": "item ids",
    "content": "the content of items",
    "sum": "item ids with their content added",
}
_SPLITS = {
    "leave_one_out": "Each user's last item is the test target, and the one before it the "
    "validation target.",
    "global_time": "Targets are what users took from a date on; training knows nothing later.",
}
# By the number of targets that training does not read (`evaluate.held_out`).
_TRAINED_ON = (
    "- It was then retrained on all interactions, with the validation and test targets.\n",
    "- It was then retrained with the validation targets, for the best number of epochs.\n",
    "",
)


def model_card(run: Run, metrics: RunMetrics, version: str, *, sequences: bool) -> str:
    """The card, in Markdown.

    Args:
      run: the run.
      metrics: what it has measured.
      version: of this package.
      sequences: whether the folder holds the users' sequences.
    """
    config, report = run.config, run.data.report
    source = "own data" if config.data.source in ("", "csv") else config.data.source
    streams = " and ".join(_STREAMS[name] for name in config.model.streams)
    memories = ", ".join(name.replace("_", "-") for name in config.model.memory)
    dates = f", {report['first_date']} to {report['last_date']}" if "first_date" in report else ""
    content = " and ".join(config.content.modalities)
    reads = "" if tuple(config.model.streams) == ("id",) else f" Content is: {content}."
    again = "may be recommended again" if config.evaluate.keep_seen else "are left out of lists"
    parts = [
        _front_matter(source, metrics),
        f"# Recommendations, trained on {source}",
        f"A sequential recommender of tssr_jax {version} "
        "([paper](https://arxiv.org/abs/2403.07623)). "
        f"It reads {streams} of a history and ranks all {run.data.num_items:,} items for the next "
        f"one.{reads}" + (f" Memories add what was counted: {memories}." if memories else ""),
        "```python\nfrom tssr_jax import Recommender\n\n"
        'recommender = Recommender.from_pretrained("FOLDER or OWNER/NAME of the Hub")\n'
        'lists = recommender.recommend([["ITEM", "ITEM"]], top_k=10)\n```',
        "## Data",
        f"{report['users']:,} users, {report['items']:,} items, {report['interactions_kept']:,} "
        f"interactions{dates}. Users with fewer than {config.data.min_user_interactions} "
        f"interactions, and items with fewer than {config.data.min_item_interactions}, were "
        "removed until none was left. The folder holds ids, titles and texts of the items, and "
        f"{_SEQUENCES if sequences else _NO_SEQUENCES}.",
        "## How well it ranks",
        _table(metrics),
        f"- {_SPLITS[config.evaluate.split]}{_of_events(run)}\n"
        f"{_TRAINED_ON[len(config.evaluate.held_out)]}"
        f"- The whole catalogue is ranked; no metric is sampled. Ties count against the target.\n"
        f"- Items that a user had before {again}.",
        "## Limits",
        _limits(run, metrics),
    ]
    return "\n\n".join(parts) + "\n"


def _of_events(run: Run) -> str:
    if not run.data.events:
        return ""
    targets = tuple(run.config.data.target_events)
    read = [name for name in run.data.events if name not in targets]
    others = f"; {', '.join(read)} are read only" if read else ""
    return f" Only these events are predicted, and are targets: {', '.join(targets)}{others}."


def _front_matter(source: str, metrics: RunMetrics) -> str:
    about: dict[str, Any] = {"library_name": "tssr-jax", "tags": ["recommendation", "jax"]}
    measured = [
        {"type": name, "value": round(float(metrics.test[name]), 4)}
        for name in _METRICS
        if name in metrics.test
    ]
    if measured:
        task = {"type": "recommendation", "name": "next item"}
        dataset = {"type": source, "name": source}
        own = {"name": "tssr", "results": [{"task": task, "dataset": dataset, "metrics": measured}]}
        about["model-index"] = [own]
    # YAML reads JSON.
    lines = [f"{name}: {json.dumps(value)}" for name, value in about.items()]
    return "\n".join(["---", *lines, "---"])


def _table(metrics: RunMetrics) -> str:
    if not metrics.test:
        return "This run was not tested."
    columns = {"validation": metrics.validation, "test": metrics.test}
    columns = {name: own for name, own in columns.items() if own}
    columns |= {f"{name}, test": own for name, own in metrics.simple.items()}
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name in (*_METRICS, *_OF_LISTS):
        values = [own.get(name) for own in columns.values()]
        if any(value is not None for value in values):
            cells = ["" if value is None else f"{value:.4f}" for value in values]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{metrics.test['num_users']:,} test targets."


def _of_users(run: Run) -> str:
    fields = tuple(run.data.profile_fields)
    return f"{', '.join(fields)}, and nothing else," if fields else "nothing else"


def _limits(run: Run, metrics: RunMetrics) -> str:
    lines = [
        f"- It reads the newest {run.config.model.max_length} items of a history, and knows "
        f"{_of_users(run)} of a user.",
        "- It learnt from what people took, which is not all that they would have liked.",
    ]
    if "cold/ndcg@10" in metrics.test:
        lines.append(
            f"- Items that training has not seen are ranked by content: NDCG@10 of "
            f"{metrics.test['cold/ndcg@10']:.4f} where the target is one of them."
        )
    elif run.known is None:
        lines.append("- It can't rank items that training has not seen.")
    if (lift := metrics.test.get("popularity_lift@10")) is not None:
        more = "more" if lift > 0 else "less"
        lines.append(
            f"- Its lists are {abs(lift):.0%} {more} popular than the histories that they are for."
        )
    return "\n".join(lines)
