"""Phases of a training run: content encoders may wait for a step before they are trained.

While one waits, the catalogue is encoded once, and a step reads its vectors like frozen features.
"""

from typing import Any, NamedTuple

import optax

from data_pipeline.input_pipeline import (
    Cut,
    TrainBatches,
    held_out_items,
    make_train_batches,
)
from tssr_jax.experiment import Experiment
from tssr_jax.parallel import ROWS
from tssr_jax.ranking import Ranker
from tssr_jax.train_state import TrainStep, make_train_step


class Phase(NamedTuple):
    """Steps with the same encoders at work.

    Attributes:
      end: the first step that is not in it; None if there is none.
      step: `(state, batch, content) -> state`, compiled for all devices.
      batches: with what the encoders read.
      content: what the step reads beside the batch.
    """

    end: int | None
    step: TrainStep
    batches: TrainBatches
    content: dict[str, Any]


class Phases:
    """Makes the phase of a step.

    Args:
      experiment: data, content, model and devices.
      optimizer: whose state the train state holds.
      layout: how the train state lies on the devices.
      ranker: encodes the catalogue.
    """

    def __init__(
        self,
        experiment: Experiment,
        optimizer: optax.GradientTransformation,
        layout: Any,
        ranker: Ranker,
    ):
        self._experiment = experiment
        self._optimizer = optimizer
        self._layout = layout
        self._ranker = ranker
        self._starts = {
            name: int(experiment.config.content[name].train_from_step)
            for name in experiment.encoders
        }

    def at(self, step: int, params: Any) -> Phase:
        """The phase that a step (from 0) is in; `params` are those before it."""
        experiment, devices = self._experiment, self._experiment.devices
        config = experiment.config
        # In the same order in every process: each encodes the catalogue by collectives.
        waiting = [name for name, start in self._starts.items() if step < start]
        trained = {k: v for k, v in experiment.trained.items() if k not in waiting}
        rows = devices.round_up(config.train.batch_size)
        return Phase(
            min((self._starts[name] for name in waiting), default=None),
            devices.run(
                make_train_step(experiment.model, self._optimizer, config, trained),
                inputs=(self._layout, ROWS, experiment.content_layout(trained)),
                output=self._layout,
                donate=(0,),
            ),
            make_train_batches(
                experiment.sequences,
                config,
                Cut(rows, devices.local_rows(rows), devices.num_devices),
                {k: v for k, v in experiment.encoders.items() if k in trained},
                held_out_items(config, experiment.data.num_items),
            ),
            self._ranker.content(params, waiting),
        )
