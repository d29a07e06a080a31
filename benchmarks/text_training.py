"""A step that trains the text encoder: each distinct item once, or every position.

    python -m benchmarks.text_training --config=configs/ml1m.py

Both ways start from the same state and take the same batches, one after the other; the first step
of each compiles. "Every position" is what a program does that calls its encoder on the whole batch
of texts: padding and repeats included, all padded to the longest.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from rich.table import Table

from data_pipeline.input_pipeline import make_train_batches
from tssr_jax.evaluate import initial_params
from tssr_jax.experiment import Experiment, build_experiment
from tssr_jax.models.content.frozen import DistinctFeatures
from tssr_jax.models.content.text import TextInputs, TrainedText
from tssr_jax.optimizer import make_optimizer
from tssr_jax.reporting import make_console
from tssr_jax.train_state import create_train_state, make_train_step, with_encoder

_CONFIG = config_flags.DEFINE_config_file("config", "configs/ml1m.py", "Data and model.")
_STEPS = flags.DEFINE_integer("steps", 3, "Timed steps of each way.", lower_bound=1)


class EveryPosition(TrainedText):
    """The encoder, called on every position of a batch."""

    def distinct_features(
        self, params: Any, inputs: TextInputs, distinct: Sequence[jax.Array], axis: Any
    ) -> DistinctFeatures:
        """All positions' vectors, then the mean of each item's, which are equal."""
        del axis
        (positions,) = distinct
        fill = -positions.size % self.micro_batch
        vectors = self.encode(params, inputs, jnp.pad(positions, (0, fill)), self.buckets[-1])
        classes = inputs.lengths.size
        total = jax.ops.segment_sum(vectors[: positions.size], positions, classes)
        number = jnp.bincount(positions, length=classes)
        return DistinctFeatures(jnp.arange(classes), total / jnp.maximum(number, 1)[:, None])


def seconds_of_steps(
    experiment: Experiment, encoder: TrainedText, prepare: Callable[[Any], Mapping[str, Any]]
) -> list[float]:
    """Times the first step, which compiles, and then `--steps` more."""
    config, text = experiment.config, experiment.text
    assert text is not None
    optimizer = make_optimizer(config.optimizer, experiment.model.catalogue, config.content)
    state = create_train_state(initial_params(experiment), optimizer, config)
    state = with_encoder(state, jax.tree.map(jnp.asarray, text.params))
    model = experiment.model.clone(rows_axis=None)
    step = jax.jit(make_train_step(model, optimizer, config, encoder), donate_argnums=0)
    batches = make_train_batches(
        experiment.sequences, config, distinct=text.distinct_items()
    ).iterate(0)
    seconds = []
    for _ in range(1 + _STEPS.value):
        batch = prepare(next(batches))
        begin = time.perf_counter()
        state = jax.block_until_ready(step(state, batch, experiment.content))
        seconds.append(time.perf_counter() - begin)
    return seconds


def main(argv: Sequence[str]) -> None:
    """Prints one line for each way."""
    del argv
    config = _CONFIG.value
    config.num_devices = 1
    config.parallel = "shard_map"
    config.content.trained_layers = config.content.trained_layers or -1
    experiment = build_experiment(config)
    encoder = experiment.text.encoder if experiment.text else None
    assert encoder is not None
    counts: list[int] = []

    def distinct(batch: Mapping[str, Any]) -> Mapping[str, Any]:
        counts.append(len(np.unique(batch["item_sequence"])))
        return batch

    def positions(batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**batch, "distinct": (batch["item_sequence"].reshape(-1),)}

    every = EveryPosition(**vars(encoder))
    ways = {
        "distinct items": seconds_of_steps(experiment, encoder, distinct),
        "every position": seconds_of_steps(experiment, every, positions),
    }
    positions_of_batch = config.train.batch_size * config.model.max_length
    table = Table(title=f"{positions_of_batch:,} positions, {np.mean(counts):,.0f} distinct items")
    for name in ("", "step", "ratio", "first step"):
        table.add_column(name, justify="right")
    best = statistics.median(ways["distinct items"][1:])
    for name, (first, *others) in ways.items():
        median = statistics.median(others)
        table.add_row(name, f"{median:.2f} s", f"{median / best:.1f}", f"{first:.1f} s")
    make_console().print(table)


if __name__ == "__main__":
    app.run(main)
