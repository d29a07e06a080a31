"""What memories cost: a training step, a request, and the counting itself.

    python -m benchmarks.memories

The first two are ratios to a model without memories, medians of interleaved repeats in one process:
of a model with all memories, and of one that also shares id vectors and ranks by four orders of
items of one time, as configurations for short histories do. (In its requests two items each have
one time.) The third counts pairs of made-up interactions of the size of H&M's, in seconds and in
memory of the process.
"""

import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from etils import epath

from benchmarks.cases import FEATURE_DIM
from benchmarks.ours import Training, full_windows
from tssr_jax.config import default
from tssr_jax.config.choices import MEMORIES
from tssr_jax.data_pipeline.prepare import PreparedData
from tssr_jax.memory.co_occurrence import Counting, Events, co_occurrence_neighbours
from tssr_jax.memory.popularity import popularity_around
from tssr_jax.memory.scores import Memories, Neighbours
from tssr_jax.models.shared_ids import sharing
from tssr_jax.recommending.items import Items
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.run import ItemArrays, Run, Users, assembled
from tssr_jax.training.gate import PERIOD

_REPEATS = flags.DEFINE_integer("repeats", 7, "Interleaved repeats; their median counts.", 1)
_INTERACTIONS = flags.DEFINE_integer(
    "interactions", 31_800_000, "Interactions of the counting; 0 skips it.", 0
)
NEIGHBOURS = 300
# Nobody takes an item again in the data that are made up here.
READ = tuple(name for name in MEMORIES if name != "repeats")
MODELS: dict[str, dict[str, Any]] = {
    "without": {"memory": ()},
    "memories": {"memory": READ},
    "memories, shared ids, four orders": {
        "memory": READ,
        "id_neighbours": 10,
        "tie_orders": 4,
    },
}
# Items, length of histories, batch, and whether the step is for large catalogues.
CASES = {"toys": (11_758, 50, 128, False), "105,000 items": (105_000, 10, 512, True)}


def make_run(case: str, changes: dict[str, Any], folder: str) -> Run:
    """A run with synthetic histories, features and neighbours."""
    num_items, length, batch, large = CASES[case]
    config = default.get_config()
    config.model.update(d_model=128, d_ffn=256, num_heads=4, num_cross_layers=1, max_length=length)
    config.model.update(changes)
    config.model.update(head="tied", mixing="experts")
    config.train.batch_size = batch
    config.memory.neighbours = NEIGHBOURS
    config.data.cache_dir = folder
    config.num_devices = 1
    if large:
        config.loss.next_item, config.optimizer.lazy_rows = "sampled", True
        config.model.id_neighbours = 0  # not together with lazy rows
    rng = np.random.default_rng(1)
    features = {"text": rng.standard_normal((num_items + 1, FEATURE_DIM), np.float32)}

    def neighbours() -> Neighbours:
        classes = rng.integers(1, num_items + 1, (num_items + 1, NEIGHBOURS), np.int32)
        return Neighbours(classes, rng.random(classes.shape, np.float32))

    memories, shared = None, None
    if config.model.memory:
        tables = {"co_occurrence": neighbours(), "words": neighbours()}
        taken = rng.integers(1, num_items + 1, 10 * num_items)
        popularity = popularity_around(taken, rng.integers(0, 10**6, taken.size), num_items)
        frequency = np.zeros(num_items + 1, np.float32)
        memories = Memories(tables, popularity, frequency, np.array(0.6, np.float32))
    if config.model.id_neighbours:
        shared = sharing(neighbours(), config.model.id_neighbours)
    arrays = ItemArrays(np.ones(num_items + 1, np.int64), features, memories, shared)
    windows = {"users": 20 * batch, "length": length, "num_items": num_items, "batch": batch}
    data = PreparedData("", Path(), {"items": num_items})
    users = Users(data, full_windows(windows))
    return assembled(config, data, lambda: users, arrays, "")


class Steps:
    """As many steps of training as hold one step of the gate."""

    def __init__(self, run: Run):
        self._training = Training(run)

    def __call__(self) -> None:
        """Takes the steps."""
        for _ in range(PERIOD):
            self._training()


class Requests:
    """One history at a time, as a service answers it."""

    def __init__(self, run: Run):
        number = run.data.num_items
        ids = [str(item) for item in range(1, number + 1)]
        params = run.devices.build(run.initial_params, run.params_layout)
        items = Items(ids, [""] * number, np.ones(number + 1, np.int64))
        self._recommender = Recommender(run, params, items, epath.Path(), batch_size=8)
        self._history = ids[: run.model.max_length]
        self._times = [[86_400.0 * (day // 2) for day in range(len(self._history))]]

    def __call__(self) -> None:
        """Answers one request."""
        self._recommender.recommend([self._history], 10, times=self._times)


def interleaved(functions: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Median seconds of each function; the first calls, which compile, do not count."""
    seconds: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 2):
        for own, function in zip(seconds, functions, strict=True):
            begin = time.perf_counter()
            function()
            if repeat >= 2:
                own.append(time.perf_counter() - begin)
    return [statistics.median(own) for own in seconds]


def count(interactions: int) -> tuple[float, float]:
    """Seconds, and GiB of the process, for counting interactions of the shape of H&M's.

    1.1 million customers, 105,000 articles whose popularity falls with their rank, histories whose
    lengths are log-normal.
    """
    rng = np.random.default_rng(0)
    num_items = 105_000
    sizes = np.maximum(1, rng.lognormal(2.8, 1.0, interactions // 28)).astype(np.int64)
    sizes = np.minimum((sizes * interactions / sizes.sum()).astype(np.int64) + 1, 1_500)
    popularity = 1.0 / (np.arange(num_items) + 50.0) ** 0.8
    drawn = np.searchsorted(np.cumsum(popularity) / popularity.sum(), rng.random(sizes.sum()))
    users = np.repeat(np.arange(sizes.size), sizes)
    pairs = np.unique(users * num_items + np.minimum(drawn, num_items - 1))  # each item once
    offsets = np.searchsorted(pairs, np.arange(sizes.size + 1) * num_items)
    items = (pairs % num_items + 1).astype(np.int32)
    minutes = rng.integers(0, 730, items.size).astype(np.int32) * 1440
    del users, drawn, pairs
    begin = time.perf_counter()
    counting = Counting(fading=0.05, power=0.6, shrinkage=20.0)
    co_occurrence_neighbours(
        Events(offsets, items, minutes, np.zeros(items.size, bool)), num_items, NEIGHBOURS, counting
    )
    seconds = time.perf_counter() - begin
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(_: list[str]) -> None:
    """Prints the three tables."""
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            runs = [make_run(case, changes, folder) for changes in MODELS.values()]
            for name, kind in ((f"{PERIOD} steps", Steps), ("request", Requests)):
                times = interleaved([kind(run) for run in runs], _REPEATS.value)
                for model, seconds in zip(MODELS, times, strict=True):
                    ratio = seconds / times[0]
                    print(
                        f"{case}, {name}, {model}: {seconds * 1e3:,.1f} ms, ratio {ratio:.2f}",
                        flush=True,
                    )
        jax.clear_caches()
    if _INTERACTIONS.value:
        seconds, gib = count(_INTERACTIONS.value)
        print(f"counting {_INTERACTIONS.value:,} interactions: {seconds:,.0f} s, {gib:.1f} GiB")


if __name__ == "__main__":
    app.run(main)
