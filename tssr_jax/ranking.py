"""Ranks of held-out items among the whole catalogue, by counting."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.input_pipeline import EvalBatches, EvalSplit
from tssr_jax import collectives, placement
from tssr_jax.experiment import Experiment
from tssr_jax.metrics import competitors_above
from tssr_jax.models.content.fusion import ContentFeatures
from tssr_jax.models.content.trained import TrainedEncoder, parameters_name, scatter
from tssr_jax.models.pure import encode, head_weights
from tssr_jax.models.tssr import TSSR
from tssr_jax.parallel import ROWS, WHOLE
from tssr_jax.train_state import init_params

# Scores that ranking holds at a time: 32 MiB.
SCORES_PER_TILE = 2**23
EvalStep = Callable[[Any, Mapping[str, Any], ContentFeatures | None], jax.Array]
# Of (parameters, batch, content): a tree of [rows, ...], and what makes of some of these rows the
# scores [rows, shard_classes].
Scorer = Callable[..., tuple[Any, Callable[[Any], jax.Array]]]


def model_scorer(model: TSSR) -> Scorer:
    """What the model makes of a history: the newest position's state, scored by the head."""

    def scorer(
        params: Any, batch: Mapping[str, Any], item_features: ContentFeatures | None
    ) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        outputs = encode(model, params, batch["item_sequence"], item_features, last_only=True)
        weights = head_weights(model, params, item_features)
        return outputs.fused[:, -1], lambda states: weights.score(states, model.compute_dtype)

    return scorer


def make_eval_step(model: TSSR, scorer: Scorer | None = None) -> EvalStep:
    """Returns the step of one device, `(params, batch, item_features) -> ranks`.

    Each device gets its rows of the batch; all get the ranks of the whole batch, int32 [batch],
    -1 for rows that only fill it.

    Args:
      model: tells how batch and catalogue lie on the devices.
      scorer: by default the model's.
    """
    catalogue = model.catalogue

    def ranks(_: Any, scores: jax.Array, answers: jax.Array, excluded: jax.Array) -> jax.Array:
        return competitors_above(scores, answers, excluded, catalogue)

    fields = ("answers", "excluded")
    return make_scores_step(model, ranks, fields, catalogue.own_rows_of_sum, scorer)


def make_scores_step(
    model: TSSR,
    function: Callable[..., Any],
    fields: tuple[str, ...],
    own_rows: Callable[[jax.Array], jax.Array],
    scorer: Scorer | None = None,
) -> Callable[..., Any]:
    """Returns the step of one device, `(params, batch, item_features) -> what users get`.

    Args:
      model: tells how batch and catalogue lie on the devices.
      function: makes of some rows of the scorer's states, their scores [rows, shard_classes], and
        these rows of `fields` a tree of arrays [rows, ...].
      fields: of the batch, by name.
      own_rows: makes of what devices that share a catalogue found for all their rows what holds for
        the device's own.
      scorer: by default the model's.

    The step's result is that of the whole batch on all devices, -1 in rows that only fill it.
    """
    catalogue, scorer = model.catalogue, scorer or model_scorer(model)

    def step(params: Any, batch: Mapping[str, Any], item_features: ContentFeatures | None) -> Any:
        states, score = scorer(params, batch, item_features)
        rows = catalogue.gather_rows((states, *(batch[name] for name in fields)))

        def of_tile(rows: tuple[Any, ...]) -> Any:
            states, *own = rows
            return function(states, score(states), *own)

        def of_batch(found: jax.Array) -> jax.Array:
            own = own_rows(found)
            mask = batch["row_mask"].reshape(-1, *[1] * (own.ndim - 1))
            return collectives.all_gather(jnp.where(mask, own, -1), model.rows_axis, 0)

        return jax.tree.map(of_batch, rows_in_tiles(of_tile, rows, catalogue.shard_classes))

    return step


def rows_in_tiles(
    function: Callable[[tuple[Any, ...]], Any], rows: tuple[Any, ...], classes: int
) -> Any:
    """Applies a function of rows, [rows, ...] -> a tree of [rows, ...], to some at a time.

    So many that the scores of all classes which it looks at stay small, whatever the catalogue.
    """
    number = jax.tree.leaves(rows)[0].shape[0]
    tiles = min(number, -(-number * classes // SCORES_PER_TILE))
    if tiles == 1:
        return function(rows)
    size = -(-number // tiles)

    def cut(x: jax.Array) -> jax.Array:
        filled = jnp.pad(x, ((0, -number % size), *((0, 0),) * (x.ndim - 1)))
        return filled.reshape(-1, size, *x.shape[1:])

    results = jax.lax.map(function, jax.tree.map(cut, rows))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:number], results)


def _catalogue_body(modality: str, encoder: TrainedEncoder, model: TSSR) -> Callable[..., Any]:
    """Adds the vectors of a part of the catalogue to a table, on each device."""

    def body(params: Any, part: Any, inputs: Any, table: jax.Array) -> jax.Array:
        own = params[parameters_name(modality)]
        features = encoder.distinct_features(own, inputs, part, model.rows_axis)
        return scatter(table, features)

    return body


class Ranker:
    """Ranks users with any parameters; compiles what it needs once.

    Attributes:
      scorer: None stands for the model's.
      inputs: how parameters, batch and content lie on the devices.

    Args:
      experiment: data, content, model and devices.
      scorer: by default the model's; what it calls parameters is whole on each device.
    """

    def __init__(self, experiment: Experiment, scorer: Scorer | None = None):
        devices = experiment.devices
        layout = params_layout(experiment)
        self._experiment = experiment
        self.scorer = scorer
        self.inputs = (WHOLE if scorer else layout, ROWS, experiment.content_layout())
        self._eval_step = devices.run(make_eval_step(experiment.model, scorer), inputs=self.inputs)
        self._encode = {}
        # A scorer of one's own reads no content that would have to be encoded.
        for name, encoder in ({} if scorer else experiment.trained).items():
            self._encode[name] = devices.run(
                _catalogue_body(name, encoder, experiment.model),
                inputs=(layout, ROWS, WHOLE, WHOLE),
            )

    def content(self, params: Any) -> dict[str, Any]:
        """What the content stream reads when nothing is trained: tables of all classes.

        An encoder that is trained encodes the catalogue once, each device its share.
        """
        experiment, devices = self._experiment, self._experiment.devices
        content = dict(experiment.content)
        for name in self._encode:
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
