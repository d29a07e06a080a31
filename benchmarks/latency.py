"""What a recommendation costs: one request, and batches of them, by size of the catalogue.

    python -m benchmarks.latency

A request is a history of ids in, a list of ids out, by `Recommender.recommend`: both streams,
length 50, width 64, random parameters. The peer is a full sort: scores by NumPy's product,
ordered by argsort (without the model). The floor of a request reads the head once, at the speed of
a copy in the same run.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from etils import epath
from rich.table import Table

from tssr_jax.config import default
from tssr_jax.data_pipeline.prepare import PreparedData
from tssr_jax.recommending.items import Items
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.reporting import make_console
from tssr_jax.run import ItemArrays, assembled

_ITEMS = flags.DEFINE_multi_integer("items", [10_000, 105_000, 1_000_000], "Catalogues.")
_REQUESTS = flags.DEFINE_integer("requests", 200, "Single requests that are timed.", 10)
_BATCH = flags.DEFINE_integer("batch", 256, "Histories of a batch.", 1)
FEATURE_DIM, LENGTH, WIDTH, TOP_K = 384, 50, 64, 20
_COPY_BYTES = 2**28


def make_recommender(num_items: int) -> Recommender:
    """A recommender with random parameters and features; ids of items are their numbers."""
    config = default.get_config()
    config.model.update(
        d_model=WIDTH, d_ffn=2 * WIDTH, num_heads=2, num_cross_layers=2, max_length=LENGTH,
        head="tied",
    )  # fmt: skip
    config.num_devices = 1
    features = np.random.default_rng(0).normal(size=(num_items + 1, FEATURE_DIM))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    arrays = ItemArrays(np.ones(num_items + 1, np.int64), {"text": features})
    data: Any = PreparedData("", Path(), {"items": num_items})
    run = assembled(config, data, lambda: None, arrays, "")  # type: ignore[arg-type, return-value]
    params = run.devices.build(run.initial_params, run.params_layout)
    ids = [str(i) for i in range(1, num_items + 1)]
    items = Items(ids, [""] * num_items, arrays.counts)
    return Recommender(run, params, items, epath.Path(), _BATCH.value)


def times(function: Callable[[], Any], number: int) -> np.ndarray:
    """Seconds of each of `number` calls, after two that are not timed."""
    seconds = []
    for i in range(number + 2):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start if i >= 2 else 0.0)
    return np.array(seconds[2:])


def _measure(num_items: int, copy_rate: float) -> tuple[str, ...]:
    rng = np.random.default_rng(1)
    recommender = make_recommender(num_items)
    histories = [
        [str(item) for item in rng.integers(1, num_items + 1, LENGTH)] for _ in range(_BATCH.value)
    ]
    turn = iter(np.resize(np.arange(_BATCH.value), 10**6))
    one = times(lambda: recommender.recommend([histories[next(turn)]], TOP_K), _REQUESTS.value)
    batch = times(lambda: recommender.recommend(histories, TOP_K), 5)
    vectors = recommender.vectors("scores")
    state = rng.normal(size=WIDTH).astype(np.float32)
    sort = times(lambda: np.argsort(-(vectors @ state))[:TOP_K], 10)
    floor = vectors.nbytes / copy_rate
    p50, p99 = np.percentile(one, [50, 99])
    return (
        f"{num_items:,}",
        f"{p50 * 1e3:.1f} ms",
        f"{p99 * 1e3:.1f} ms",
        f"{np.median(sort) / p50:.2f}",
        f"{p50 / floor:.1f}",
        f"{_BATCH.value / np.median(batch):,.0f}",
    )


def main(_: list[str]) -> None:
    """Prints a table."""
    source, target = np.ones(_COPY_BYTES, np.uint8), np.empty(_COPY_BYTES, np.uint8)
    copy_rate = _COPY_BYTES / np.median(times(lambda: np.copyto(target, source), 5))
    table = Table(title=f"Lists of {TOP_K}, length {LENGTH}, width {WIDTH}, both streams")
    for name in (
        "items",
        "one request, p50",
        "p99",
        "full sort / p50",
        "p50 / floor",
        f"requests a second, by {_BATCH.value}",
    ):
        table.add_column(name, justify="right")
    for num_items in _ITEMS.value:
        table.add_row(*_measure(num_items, copy_rate))
    make_console().print(table)


if __name__ == "__main__":
    app.run(main)
