"""Ranks of held-out items among the whole catalogue, by counting, and lists of the best items."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tssr_jax.content.trained import TrainedEncoder, parameters_name, scatter
from tssr_jax.evaluation.metrics import MISSED, competitors_above
from tssr_jax.evaluation.top_k import best_classes, seen_items
from tssr_jax.models.apply import head_weights, newest, score
from tssr_jax.models.content import CONTENT_LAYOUT, Content, Features, as_content
from tssr_jax.models.recall import Recalled, all_scores, recall
from tssr_jax.models.side import NO_SIDE, Side
from tssr_jax.models.tssr import TSSR
from tssr_jax.parallel import collectives
from tssr_jax.parallel.devices import ROWS, WHOLE

if TYPE_CHECKING:
    from tssr_jax.run import Run

# Scores that ranking holds at a time: 32 MiB.
SCORES_PER_TILE = 2**23
# `scorer(params, batch, content) -> (states, score_rows)`: a tree of [rows, ...], and the function
# from some of these rows to their scores [rows, shard_classes].
Scorer = Callable[..., tuple[Any, Callable[[Any], jax.Array]]]


class Ranked(NamedTuple):
    """What a ranking finds, on the devices or the host.

    Attributes:
      ranks: int32 [rows], 0-based rank of each user's answer.
      lists: int32 [rows, k], each user's best items, best first; 0 where no item is left.
    """

    ranks: Any
    lists: Any


EvalStep = Callable[[Any, Mapping[str, Any], Content], Ranked]


class RankingBatches(Protocol):
    """Histories to rank for, see `data_pipeline.eval_batches.EvalBatches`."""

    number: int
    order: np.ndarray

    def __iter__(self) -> Any:
        """Batches with `item_sequence`, `times`, `answers`, `excluded`, `missed`, `row_mask`."""


def in_own_order(found: np.ndarray, batches: RankingBatches) -> np.ndarray:
    """Results [rows, ...] of histories as they come in batches, in their own order."""
    ordered = np.empty_like(found)
    ordered[batches.order] = found
    return ordered


def rank(  # noqa: PLR0917
    model: TSSR,
    params: Any,
    item_sequence: jax.Array,
    answers: jax.Array,
    features: Features = None,
    excluded: jax.Array | None = None,
    times: jax.Array | None = None,
    *,
    side: Side = NO_SIDE,
) -> jax.Array:
    """0-based rank of each history's answer among all items; a tie counts against it.

        ranks = rank(model, params, item_sequence, answers, features)
        metrics = ranking_metrics(np.asarray(ranks))

    Args:
      model: the module, whose catalogue is whole.
      params: its parameters.
      item_sequence: int [batch, length], oldest first, left padded with 0.
      answers: int [batch], items.
      features: of the items, as `encode` takes them.
      excluded: int [batch, width], items that do not compete (each once, not the answer), filled
        up with -1; by default the items of `item_sequence`.
      times: int [batch, length], minutes, as `score` reads them.
      side: as `score` reads it.

    Returns:
      int32 [batch].
    """
    if excluded is None:
        excluded = seen_items(item_sequence, answers)
    padding = jnp.zeros_like(answers)[:, None]
    scores = score(model, params, item_sequence, features, times, side=side)
    return competitors_above(scores, answers, jnp.c_[excluded, padding], model.classes)


def model_scorer(model: TSSR) -> Scorer:
    """Scores by the newest position's state and the model's head, and by its memories."""

    def scorer(
        params: Any, batch: Mapping[str, Any], content: Content
    ) -> tuple[Any, Callable[[Any], jax.Array]]:
        outputs = newest(model, params, batch, content)
        weights = head_weights(model, params, content)
        memories = as_content(content, model.modalities).memories
        recalled = recall(model, params, batch, memories)

        def score_rows(states: tuple[jax.Array, Recalled | None]) -> jax.Array:
            fused, recalled = states
            return all_scores(model, params, weights, fused, recalled, memories)

        return (outputs.fused[:, -1], recalled), score_rows

    return scorer


def make_eval_step(model: TSSR, scorer: Scorer | None = None, k: int = 0) -> EvalStep:
    """Returns the step of one device, `(params, batch, content) -> Ranked`.

    Each device takes its rows of the batch, and returns what is found for the whole batch; -1 in
    padding rows.

    Args:
      model: tells how batch and catalogue lie on the devices.
      scorer: by default the model's.
      k: length of the lists; 0 makes none.
    """
    catalogue = model.classes

    def ranked(
        _: Any, scores: jax.Array, answers: jax.Array, excluded: jax.Array, missed: jax.Array
    ) -> Ranked:
        above = competitors_above(scores, answers, excluded, catalogue)
        # The shards' ranks are summed: the one that holds the answer says that it is missed.
        _, here = catalogue.pick_own(scores, answers[:, None])
        ranks = jnp.where(missed, jnp.where(here[:, 0], MISSED, 0), above)
        if not k:
            return Ranked(ranks, jnp.zeros((len(ranks), 0), jnp.int32))
        # A missed answer has been seen, and is in no list.
        seen = jnp.where(missed, answers, -1)[:, None]
        return Ranked(ranks, best_classes(scores, jnp.c_[excluded, seen], k, catalogue)[0])

    def own_rows(found: Ranked) -> Ranked:
        return Ranked(catalogue.own_rows_of_sum(found.ranks), catalogue.own_rows(found.lists))

    return make_scores_step(model, ranked, ("answers", "excluded", "missed"), own_rows, scorer)


def make_scores_step(
    model: TSSR,
    function: Callable[..., Any],
    fields: tuple[str, ...],
    own_rows: Callable[[Any], Any],
    scorer: Scorer | None = None,
) -> Callable[..., Any]:
    """Returns the step of one device, `(params, batch, content) -> results of all rows`.

    Args:
      model: tells how batch and catalogue lie on the devices.
      function: `(states, scores, *fields) -> results`, on some rows: the scorer's states, their
        scores [rows, shard_classes], and the batch's fields; a tree of arrays [rows, ...].
      fields: names of the batch's fields.
      own_rows: maps the tree of group-wide results to this device's rows.
      scorer: by default the model's.

    The step returns the results of the whole batch on all devices, -1 in padding rows.
    """
    catalogue, scorer = model.classes, scorer or model_scorer(model)

    def step(params: Any, batch: Mapping[str, Any], content: Content) -> Any:
        states, score_rows = scorer(params, batch, content)
        rows = catalogue.gather_rows((states, *(batch[name] for name in fields)))

        def of_tile(rows: tuple[Any, ...]) -> Any:
            states, *own = rows
            return function(states, score_rows(states), *own)

        def of_batch(own: jax.Array) -> jax.Array:
            mask = batch["row_mask"].reshape(-1, *[1] * (own.ndim - 1))
            return collectives.all_gather(jnp.where(mask, own, -1), model.rows_axis, 0)

        found = rows_in_tiles(of_tile, rows, catalogue.shard_classes)
        return jax.tree.map(of_batch, own_rows(found))

    return step


def rows_in_tiles(
    function: Callable[[tuple[Any, ...]], Any], rows: tuple[Any, ...], classes: int
) -> Any:
    """Applies a function of rows, [rows, ...] -> a tree of [rows, ...], tile by tile.

    A tile has so few rows that its scores, [rows, classes], are at most `SCORES_PER_TILE`. For
    gradients each tile is computed again.
    """
    number = jax.tree.leaves(rows)[0].shape[0]
    tiles = min(number, -(-number * classes // SCORES_PER_TILE))
    if tiles == 1:
        return function(rows)
    size = -(-number // tiles)

    def cut(x: jax.Array) -> jax.Array:
        filled = jnp.pad(x, ((0, -number % size), *((0, 0),) * (x.ndim - 1)))
        return filled.reshape(-1, size, *x.shape[1:])

    results = jax.lax.map(jax.checkpoint(function), jax.tree.map(cut, rows))
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * size, *x.shape[2:])[:number], results)


def _catalogue_body(modality: str, encoder: TrainedEncoder, model: TSSR) -> Callable[..., Any]:
    """Adds the vectors of a part of the catalogue to a table, on each device."""

    def body(params: Any, part: Any, inputs: Any, table: jax.Array) -> jax.Array:
        own = params[parameters_name(modality)]
        features = encoder.distinct_features(own, inputs, part, model.rows_axis)
        return scatter(table, features)

    return body


class Ranker:
    """Ranks users with any parameters; compiles each program once.

    Lists have `config.evaluate.list_length` items.

    Attributes:
      scorer: the scorer; None is the model's.

    Args:
      run: data, content, model and devices.
      scorer: by default the model's; its parameters lie whole on each device.
    """

    def __init__(self, run: "Run", scorer: Scorer | None = None):
        devices, layout = run.devices, run.params_layout
        self._run = run
        self.scorer = scorer
        k = min(run.config.evaluate.list_length, run.data.num_items)
        self._eval_step = devices.run(
            make_eval_step(run.model, scorer, k),
            inputs=(WHOLE if scorer else layout, ROWS, CONTENT_LAYOUT),
        )
        self._encode = {}
        # A custom scorer reads no encoded content.
        for name, encoder in ({} if scorer else run.trained).items():
            self._encode[name] = devices.run(
                _catalogue_body(name, encoder, run.model), inputs=(layout, ROWS, WHOLE, WHOLE)
            )

    def content(self, params: Any) -> Content:
        """The content for ranking: feature tables of all classes.

        A trainable encoder encodes the catalogue once, each device its share.
        """
        run, devices = self._run, self._run.devices
        features = dict(run.content.features)
        for name in self._encode:
            prepared = run.encoders[name]
            shape = (run.data.num_items + 1, prepared.encoder.width)
            table = devices.place(np.zeros(shape, np.float32))
            mine = devices.local_rows(devices.num_devices)
            for part in prepared.catalogue_parts(devices.num_devices, mine):
                table = self._encode[name](params, part, run.content.inputs[name], table)
            features[name] = table
        return dataclasses.replace(run.content, features=features, inputs={})

    def __call__(
        self, params: Any, batches: RankingBatches, on_batch: Callable[[], None] = lambda: None
    ) -> Ranked:
        """What is found for all histories, on the host, in their own order."""
        content = self.content(params)
        parts = []
        for batch in batches:
            found = self._eval_step(params, batch, content)
            parts.append(Ranked(*map(np.asarray, found)))
            on_batch()
        ranks, lists = map(np.concatenate, zip(*parts, strict=True))
        real = ranks >= 0
        if np.count_nonzero(real) != batches.number:
            raise RuntimeError(f"{real.sum()} answers were ranked instead of {batches.number}")
        return Ranked(*(in_own_order(values[real], batches) for values in (ranks, lists)))
