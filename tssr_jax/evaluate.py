"""Full-catalogue evaluation: of a split during training, and of a run's best checkpoint."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from rich.console import Console

from data_pipeline.input_pipeline import EvalBatches, EvalSplit
from tssr_jax import collectives, placement, processes
from tssr_jax.checkpointing import Checkpointer
from tssr_jax.experiment import Experiment, build_experiment, require_same_data
from tssr_jax.metrics import competitors_above, ranking_metrics
from tssr_jax.models.content.fusion import ContentFeatures
from tssr_jax.models.content.trained import TrainedEncoder, parameters_name, scatter
from tssr_jax.models.tssr import TSSR, encode, head_weights
from tssr_jax.parallel import ROWS, WHOLE
from tssr_jax.reporting import make_console, make_progress, metrics_table
from tssr_jax.run_config import load_config, write_json
from tssr_jax.train_state import init_params

TEST_METRICS_FILE = "test_metrics.json"
# Metrics of warm and of cold items.
OF_PARTS = ("recall@10", "ndcg@10", "mrr")
# Scores that ranking holds at a time: 32 MiB.
SCORES_PER_TILE = 2**23
SPLITS: tuple[EvalSplit, ...] = ("validation", "test")
EvalStep = Callable[[Any, Mapping[str, Any], ContentFeatures | None], jax.Array]


def make_eval_step(model: TSSR) -> EvalStep:
    """Returns the step of one device, `(params, batch, item_features) -> ranks`.

    Each device gets its rows of the batch; all get the ranks of the whole batch, int32 [batch],
    -1 for rows that only fill it.
    """
    catalogue = model.catalogue

    def eval_step(
        params: Any, batch: Mapping[str, Any], item_features: ContentFeatures | None
    ) -> jax.Array:
        outputs = encode(model, params, batch["item_sequence"], item_features, last_only=True)
        states, answers, excluded = catalogue.gather_rows(
            (outputs.fused[:, -1], batch["answers"], batch["excluded"])
        )
        weights = head_weights(model, params, item_features)

        def count(rows: tuple[jax.Array, ...]) -> jax.Array:
            states, answers, excluded = rows
            scores = weights.score(states, model.compute_dtype)
            return competitors_above(scores, answers, excluded, catalogue)

        above = _in_tiles(count, (states, answers, excluded), catalogue.shard_classes)
        ranks = catalogue.own_rows_of_sum(above)
        ranks = jnp.where(batch["row_mask"], ranks, -1)
        return collectives.all_gather(ranks, model.rows_axis, 0)

    return eval_step


def _in_tiles(
    count: Callable[[tuple[jax.Array, ...]], jax.Array], rows: tuple[jax.Array, ...], classes: int
) -> jax.Array:
    """Applies a function of rows, [rows, ...] -> [rows], to some of them at a time.

    So many that the scores of all classes which it looks at stay small, whatever the catalogue.
    """
    number = rows[0].shape[0]
    tiles = min(number, -(-number * classes // SCORES_PER_TILE))
    if tiles == 1:
        return count(rows)
    size = -(-number // tiles)

    def cut(x: jax.Array) -> jax.Array:
        filled = jnp.pad(x, ((0, -number % size), *((0, 0),) * (x.ndim - 1)))
        return filled.reshape(-1, size, *x.shape[1:])

    return jax.lax.map(count, jax.tree.map(cut, rows)).reshape(-1)[:number]


def _catalogue_body(modality: str, encoder: TrainedEncoder, model: TSSR) -> Callable[..., Any]:
    """Adds the vectors of a part of the catalogue to a table, on each device."""

    def body(params: Any, part: Any, inputs: Any, table: jax.Array) -> jax.Array:
        own = params[parameters_name(modality)]
        features, _ = encoder.distinct_features(own, inputs, part, model.rows_axis, train=False)
        return scatter(table, features)

    return body


class Ranker:
    """Ranks users with any parameters; compiles what it needs once.

    Args:
      experiment: data, content, model and devices.
    """

    def __init__(self, experiment: Experiment):
        layout, devices = params_layout(experiment), experiment.devices
        self._experiment = experiment
        self._eval_step = devices.run(
            make_eval_step(experiment.model), inputs=(layout, ROWS, experiment.content_layout())
        )
        self._encode = {}
        for name, encoder in experiment.trained.items():
            self._encode[name] = devices.run(
                _catalogue_body(name, encoder, experiment.model),
                inputs=(layout, ROWS, WHOLE, WHOLE),
            )

    def content(self, params: Any, modalities: Iterable[str] | None = None) -> dict[str, Any]:
        """What the content stream reads when nothing is trained: tables of all classes.

        An encoder that is trained encodes the catalogue once, each device its share.

        Args:
          params: the model's parameters.
          modalities: whose encoders are run; by default those of all that are trained.
        """
        experiment, devices = self._experiment, self._experiment.devices
        content = dict(experiment.content)
        for name in self._encode if modalities is None else modalities:
            prepared = experiment.encoders[name]
            shape = (experiment.data.num_items + 1, prepared.encoder.width)
            table = devices.place(np.zeros(shape, np.float32))
            mine = devices.local_rows(devices.num_devices)
            for part in prepared.catalogue_parts(devices.num_devices, mine):
                table = self._encode[name](params, part, experiment.content[name], table)
            content[name] = table
        return content

    def __call__(
        self, params: Any, batches: EvalBatches, on_batch: Callable[[], None] = lambda: None
    ) -> np.ndarray:
        """0-based rank of each user's answer, int32 [num_users], each user once."""
        features = self.content(params)
        ranks = []
        for batch in batches:
            ranks.append(np.asarray(self._eval_step(params, batch, features)))
            on_batch()
        everyone = np.concatenate(ranks)
        everyone = everyone[everyone >= 0]
        if len(everyone) != batches.num_users:
            raise RuntimeError(f"{len(everyone)} users were ranked instead of {batches.num_users}")
        return everyone


def params_layout(experiment: Experiment) -> Any:
    """How the model's parameters lie on the devices."""
    return placement.layout(jax.eval_shape(lambda: initial_params(experiment)))


def initial_params(experiment: Experiment) -> Any:
    """`init_params` of the experiment's model and seed; zeros for an encoder that is trained."""
    params = init_params(experiment.model, experiment.feature_widths, experiment.config.seed)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), experiment.pretrained)
    return params | zeros


def make_eval_batches(experiment: Experiment, split: EvalSplit) -> EvalBatches:
    """All users of a split, with the exclusions that `config.corrections` ask for."""
    config = experiment.config
    batch_size = experiment.devices.round_up(config.evaluate.batch_size)
    return EvalBatches(
        experiment.sequences,
        split,
        batch_size=batch_size,
        rows=experiment.devices.local_rows(batch_size),
        max_length=config.model.max_length,
        full_history=config.corrections.full_history_ranking,
        exclude_padding_class=config.corrections.exclude_padding_class,
    )


def split_metrics(
    experiment: Experiment, batches: EvalBatches, ranks: np.ndarray
) -> dict[str, float | int]:
    """Metrics of one split, averaged as `config.corrections` asks for.

    Where it is known which items training has seen, also those of users whose answer is one of
    them ("warm/...") and of the others ("cold/...").
    """
    config = experiment.config
    full = config.corrections.full_history_ranking
    metrics = ranking_metrics(ranks, batch_size=None if full else config.evaluate.batch_size)
    if experiment.known is not None:
        warm = experiment.known[batches.answers()]
        for name, some in (("warm", ranks[warm]), ("cold", ranks[~warm])):
            if some.size:
                own = ranking_metrics(some)
                metrics |= {f"{name}/{key}": own[key] for key in (*OF_PARTS, "num_users")}
    return metrics


def evaluate_best(
    experiment: Experiment, params: Any, step: int, workdir: epath.Path, console: Console
) -> dict[str, float | int]:
    """Ranks both held-out splits, writes workdir/test_metrics.json and prints a table.

    Args:
      experiment: data, features and model.
      params: the model's parameters.
      step: the step they come from, for the table.
      workdir: the run's folder.
      console: where the table goes.

    Returns:
      The test metrics.
    """
    rank = Ranker(experiment)
    columns: dict[str, dict[str, float | int]] = {}
    with make_progress(console) as progress:
        for split in SPLITS:
            batches = make_eval_batches(experiment, split)
            task = progress.add_task(f"Ranking, {split}", total=batches.num_batches, message="")
            ranks = rank(params, batches, functools.partial(progress.advance, task))
            columns[split] = split_metrics(experiment, batches, ranks)
    if processes.is_first():
        write_json(workdir / TEST_METRICS_FILE, columns["test"])
    console.print(metrics_table(f"{workdir}, step {step}", columns))
    return columns["test"]


def evaluate(workdir: epath.Path) -> dict[str, float | int]:
    """Restores the best checkpoint of a run and evaluates it again: `--mode=evaluate`.

    Raises:
      UserError: if `workdir` holds no run, or its data or checkpoints don't fit.
    """
    console = make_console(quiet=not processes.is_first())
    config = load_config(workdir)
    # A run that was trained on several devices can be evaluated where there are fewer.
    config.num_devices = min(config.num_devices, len(jax.devices()))
    config.model_devices = math.gcd(config.model_devices, config.num_devices or len(jax.devices()))
    experiment = build_experiment(config)
    require_same_data(experiment, workdir)
    target = experiment.devices.build(lambda: initial_params(experiment), params_layout(experiment))
    with Checkpointer(workdir, experiment.data.num_items, console.print) as checkpointer:
        params, step = checkpointer.restore_best(target)
    return evaluate_best(experiment, params, step, workdir, console)
