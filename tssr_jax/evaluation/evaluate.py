"""Full-catalogue evaluation of a run's best checkpoint, or of a baseline."""

import dataclasses
import functools
import math
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from rich.console import Console
from rich.table import Table

from tssr_jax.adapting import adapted
from tssr_jax.checkpoints.checkpointer import Checkpointer
from tssr_jax.config import default_config
from tssr_jax.config.choices import trains_encoder
from tssr_jax.config.files import write_arrays, write_json
from tssr_jax.config.saved import (
    DATA_FILE,
    FILE_NAME,
    load_config,
    require_same_config,
    save_config,
)
from tssr_jax.data_pipeline.cache import can_be_written
from tssr_jax.data_pipeline.counts import history_mean, same_day, training_counts
from tssr_jax.data_pipeline.eval_batches import EvalBatches
from tssr_jax.data_pipeline.splits import EvalSplit
from tssr_jax.errors import UserError
from tssr_jax.evaluation.baselines import learn_baseline
from tssr_jax.evaluation.list_metrics import list_metrics
from tssr_jax.evaluation.metrics import (
    MISSED,
    popular_lists,
    popularity_ranks,
    ranking_metrics,
)
from tssr_jax.evaluation.ranking import Ranked, Ranker, Scorer, in_own_order
from tssr_jax.locks import require_plain
from tssr_jax.models.shared_ids import ids_as_read
from tssr_jax.parallel import processes
from tssr_jax.reporting import make_console, make_progress, metrics_table
from tssr_jax.run import Run, build_run, require_same_data, save_data_report
from tssr_jax.run_folder import has_catalogue, load_run, saved_params

PER_USER_FILE = "per_user.npz"
# Test metrics of baselines, by name.
SIMPLE_FILE = "simple_metrics.json"
# Metrics that are also reported for warm and cold items.
OF_PARTS = ("recall@10", "ndcg@10", "mrr")
# Metrics in the table; the files have all metrics.
QUOTED = (
    *("ndcg@10", "recall@10", "ndcg@20", "recall@20", "mrr"),
    *("coverage@10", "gini@10", "novelty@10", "serendipity@10", "popularity_lift@10"),
)
# Item-kNN stands beside a model's metrics up to these numbers: counting and ranking take seconds.
COMPARED_USERS = 100_000
_COMPARED_ITEMS = 200_000
SPLITS: tuple[EvalSplit, ...] = ("validation", "test")
Metrics = dict[str, float | int]


def split_metrics(run: Run, batches: EvalBatches, ranks: np.ndarray) -> Metrics:
    """Metrics of one split, averaged as `config.corrections` asks for.

    If `run.known` says which items training has seen, also metrics of users whose answer is one of
    them ("warm/...") and of the other users ("cold/...").
    """
    config = run.config
    full = config.corrections.full_history_ranking
    metrics = ranking_metrics(ranks, batch_size=None if full else config.evaluate.batch_size)
    if run.known is not None:
        warm = run.known[batches.answers()]
        for name, some in (("warm", ranks[warm]), ("cold", ranks[~warm])):
            if some.size:
                own = ranking_metrics(some)
                metrics |= {f"{name}/{key}": own[key] for key in (*OF_PARTS, "num_users")}
    return metrics


def evaluate_params(  # noqa: PLR0917
    run: Run,
    params: Any,
    title: str,
    workdir: epath.Path,
    console: Console,
    rank: Ranker | None = None,
    validation: Ranked | None = None,
) -> dict[str, Metrics]:
    """Ranks the splits that are held out, writes the results and prints a table.

    Writes test_metrics.json, validation_metrics.json (if it is held out), simple_metrics.json (of
    baselines) and per_user.npz to `workdir`. per_user.npz holds the answers of the splits and their
    ranks ("test_rank", ...); of the test's also the length of the history ("history"), and whether
    the answer is of the day of the item before it ("same_day"); for each class, its training
    frequency ("counts").

    Args:
      run: data, features and model.
      params: parameters of the model, or of the scorer of `rank`.
      title: title of the table.
      workdir: the run's folder.
      console: prints the table.
      rank: ranks the users; by default by the model, with a program that is compiled here.
      validation: what ranking the validation split by these parameters has found, if it is known.

    Returns:
      Metrics of these splits, those of lists (`config.evaluate.list_length`) of the test only.

    Raises:
      UserError: if nothing is held out.
    """
    held_out = tuple(run.config.evaluate.held_out)
    if not held_out:
        raise UserError(
            f"{workdir} was trained on all of its data (evaluate.held_out), so no data is held out "
            "for a test. Evaluate the run that it was refitted from."
        )
    rank = rank or Ranker(run)
    columns: dict[str, Metrics] = {}
    per_user: dict[str, np.ndarray] = {}
    known = {"validation": validation} if validation else {}
    with make_progress(console) as progress:
        for split in (name for name in SPLITS if name in held_out):
            batches = make_eval_batches(run, split)
            if split not in known:
                task = progress.add_task(f"Ranking, {split}", total=batches.num_batches, message="")
                known[split] = rank(params, batches, functools.partial(progress.advance, task))
            columns[split] = split_metrics(run, batches, known[split].ranks)
            per_user |= {f"{split}_rank": known[split].ranks, f"{split}_answer": batches.answers()}
    store = run.sequences
    per_user["history"] = store.splits.targets["test"].ends
    per_user["same_day"] = same_day(store, "test")
    per_user["counts"] = run.counts
    by_popularity, popular = _by_popularity(run)
    simple = {"popularity": by_popularity}
    if run.config.evaluate.list_length:
        lists = known["test"].lists
        columns["test"] |= _list_metrics(run, params, rank, lists, popular, per_user)
    if processes.is_first():
        for name, metrics in columns.items():
            write_json(workdir / f"{name}_metrics.json", metrics)
        write_arrays(workdir / PER_USER_FILE, per_user)
    simple |= _by_counting(run) if rank.scorer is None else {}
    if processes.is_first():
        write_json(workdir / SIMPLE_FILE, simple)
    console.print(_table(title, columns, simple))
    console.print(f"All metrics: {workdir}/test_metrics.json; each user's ranks: {PER_USER_FILE}.")
    return columns


def _as_baseline(run: Run) -> ml_collections.ConfigDict:
    """The configuration by which baselines count: also what the gate's users lend."""
    config = run.config.copy_and_resolve_references()
    config.baseline.kind = "popularity"
    return config


def _by_popularity(run: Run) -> tuple[Metrics, np.ndarray]:
    """The test metrics of popularity, and lists [num_users, k] of what training saw most often."""
    k = min(run.config.evaluate.list_length, run.data.num_items)
    counts = training_counts(run.sequences, _as_baseline(run), run.data.num_items)
    batches = make_eval_batches(run, "test", all_rows=True)
    ranks, lists = [], []
    for batch in batches:
        own = popularity_ranks(counts, batch["answers"], batch["excluded"])
        real = batch["row_mask"]
        ranks.append(np.where(batch["missed"], MISSED, own)[real])
        seen = np.where(batch["missed"], batch["answers"], -1)[:, None]
        lists.append(popular_lists(run.counts, np.c_[batch["excluded"], seen], k)[real])
    return ranking_metrics(np.concatenate(ranks)), in_own_order(np.concatenate(lists), batches)


def _by_counting(run: Run) -> dict[str, Metrics]:
    """The test metrics of item-kNN and, where items may be recommended again, of own items.

    Empty where they would take longer than seconds.
    """
    batches = make_eval_batches(run, "test")
    small = batches.number <= COMPARED_USERS and run.data.num_items <= _COMPARED_ITEMS
    if run.config.model_devices > 1 or not small:
        return {}
    kinds = {"own items": "own_items"} if run.config.evaluate.keep_seen else {}
    found, counted = {}, dataclasses.replace(run, config=_as_baseline(run))
    for name, kind in (kinds | {"item-kNN": "item_knn"}).items():
        params, scorer = learn_baseline(counted, kind)
        found[name] = ranking_metrics(Ranker(run, scorer)(params, batches).ranks)
    return found


def _table(title: str, columns: dict[str, Metrics], simple: dict[str, Metrics]) -> Table:
    """The usual metrics, and the test metrics of baselines."""
    told = [*QUOTED, *(f"cold/{name}" for name in OF_PARTS if "cold/mrr" in columns["test"])]
    everyone = [*columns.values(), *simple.values()]
    rows = {name: [metrics.get(name) for metrics in everyone] for name in told}
    # The first columns are the model's, and those of lists have no validation.
    own = len(columns)
    rows = {name: v for name, v in rows.items() if any(x is not None for x in v[:own])}
    names = (*columns, *(f"{name}, test" for name in simple))
    caption = f"{columns['test']['num_users']:,} test targets, the whole catalogue ranked"
    return metrics_table(title, names, rows, caption)


def _list_metrics(  # noqa: PLR0917
    run: Run,
    params: Any,
    ranker: Ranker,
    lists: np.ndarray,
    popular: np.ndarray,
    per_user: dict[str, np.ndarray],
) -> dict[str, float]:
    """Metrics of the test split's lists; `popular` are those that popularity gives."""
    counts = per_user["counts"]
    content = ranker.content(params)
    spaces = dict(content.features)
    if ranker.scorer is None and "token_embedding" in params:
        spaces["id"] = params["token_embedding"]["embedding"]
    vectors = {n: processes.to_host(x)[: counts.size] for n, x in spaces.items()}
    if "id" in vectors:
        known = content.known
        known_here = None if known is None else processes.to_host(known)[: counts.size]
        vectors["id"] = np.asarray(ids_as_read(vectors["id"], known_here, content.neighbours))
    return list_metrics(
        lists,
        answers=per_user["test_answer"],
        expected=popular,
        history_popularity=history_mean(run.sequences, counts, "test"),
        counts=counts,
        spaces=vectors,
    )


def load_config_here(workdir: epath.Path, raw_dir: str | None = None) -> ml_collections.ConfigDict:
    """A run's configuration, with no more devices than this machine has, and a cache that it has.

    Raises:
      UserError: as `load_config` does.
    """
    config = load_config(workdir, raw_dir)
    if not can_be_written(config.data.cache_dir):
        ours = default_config().data.cache_dir
        print(f"The cache is in {ours}: the run's, {config.data.cache_dir}, can't be written here.")
        config.data.cache_dir = ours
    config.num_devices = min(config.num_devices, len(jax.devices()))
    return config


def restore_best(
    workdir: epath.Path,
    *,
    raw_dir: str | None = None,
    whole_catalogue: bool = False,
    encoders: bool = False,
) -> tuple[Run, Any, int]:
    """Restores a run's best checkpoint: the run, its parameters, and their step.

    Args:
      workdir: the run's folder.
      raw_dir: where its raw files are now; None if they have not moved.
      whole_catalogue: put the whole catalogue on each device, even if training cut it.
      encoders: also content encoders that were trained, for which raw files are needed; else the
        vectors that they gave may stand for them.

    Raises:
      UserError: if `workdir` holds no run, or its data or checkpoints don't fit.
    """
    require_plain(workdir)
    config = load_config_here(workdir, raw_dir)
    parts = 1 if whole_catalogue else config.model_devices
    config.model_devices = math.gcd(parts, config.num_devices or len(jax.devices()))
    encoders &= trains_encoder(config)
    if has_catalogue(workdir) and not encoders:
        run = load_run(workdir, config)
    else:
        run = build_run(config)
        require_same_data(run.data, run.content_key, workdir)
    if not encoders and (found := saved_params(workdir, run)):
        return run, *found
    target = run.abstract_params
    console = make_console(quiet=not processes.is_first())
    num_items = run.data.num_items
    with Checkpointer(workdir, num_items, console.print, reading=True) as checkpointer:
        params, step = checkpointer.restore_best(target)
    return run, params, step


def make_eval_batches(run: Run, split: EvalSplit, *, all_rows: bool = False) -> EvalBatches:
    """All users of a split, with the exclusions that `config.corrections` ask for.

    Args:
      run: data, configuration and devices.
      split: "validation" or "test".
      all_rows: read the rows of all processes, not only those of this one.
    """
    config = run.config
    batch_size = run.devices.round_up(config.evaluate.batch_size)
    return EvalBatches(
        run.sequences,
        split,
        batch_size=batch_size,
        rows=slice(None) if all_rows else run.devices.local_rows(batch_size),
        max_length=config.model.max_length,
        full_history=config.corrections.full_history_ranking,
        exclude_padding_class=config.corrections.exclude_padding_class,
        keep_seen=config.evaluate.keep_seen,
    )


def evaluate(workdir: epath.PathLike, raw_dir: str | None = None) -> Metrics:
    """Restores the best checkpoint of a run and evaluates it again.

        metrics = evaluate("runs/mine")
        metrics["ndcg@10"]

    Args:
      workdir: the run's folder.
      raw_dir: where its raw files are now; None if they have not moved.

    Returns:
      The test metrics.

    Raises:
      UserError: as `restore_best` does.
    """
    workdir = epath.Path(workdir).expanduser()
    run, params, step = restore_best(workdir, raw_dir=raw_dir)
    console = make_console(quiet=not processes.is_first())
    return evaluate_params(run, params, f"{workdir}, step {step}", workdir, console)["test"]


def run_baseline(config: ml_collections.ConfigDict, workdir: epath.Path) -> Metrics:
    """Evaluates `config.baseline` like a run's best checkpoint; returns the test metrics.

    Raises:
      UserError: if the configuration or the data make no sense, or `workdir` holds another run.
    """
    config = adapted(config, make_console(quiet=not processes.is_first()).print, workdir)
    if (workdir / FILE_NAME).exists():
        require_same_config(config, workdir)
    run = build_run(config)
    if (workdir / DATA_FILE).exists():
        require_same_data(run.data, run.content_key, workdir)
    learnt = learn_baseline(run, config.baseline.kind)
    if processes.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        save_data_report(run.users(), run.config, run.content_key, workdir)
        save_config(config, workdir)
    return _evaluate_baseline(run, *learnt, workdir)


def evaluate_baseline(workdir: epath.Path, raw_dir: str | None = None) -> Metrics:
    """Evaluates the baseline of a workdir again, as `evaluate` does a trained model.

    Raises:
      UserError: if `workdir` holds no run, or the data is another.
    """
    run = build_run(load_config_here(workdir, raw_dir))
    require_same_data(run.data, run.content_key, workdir)
    return _evaluate_baseline(run, *learn_baseline(run, run.config.baseline.kind), workdir)


def _evaluate_baseline(run: Run, params: Any, scorer: Scorer, workdir: epath.Path) -> Metrics:
    console = make_console(quiet=not processes.is_first())
    title = f"{workdir}, {run.config.baseline.kind}"
    rank = Ranker(run, scorer)
    return evaluate_params(run, params, title, workdir, console, rank=rank)["test"]
