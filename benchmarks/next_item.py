"""The next-item loss and its gradients, in tiles of several sizes, against the dense formula.

    python -m benchmarks.next_item --items=11758 --length=50 --labelled=5.6

Sizes are POSITIONS:LOG2_SCORES (`TileSize`: positions at a time, and how many scores are held
before it goes on in chunks of classes). Turns are interleaved, medians told; the floor is three
products of states and catalogue at the speed of one large product of the same run.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from rich.table import Table

from tssr_jax.losses.next_item import TileSize, next_item_loss
from tssr_jax.models.head import HeadWeights
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.reporting import make_console

_ITEMS = flags.DEFINE_integer("items", 10_000, "Of the catalogue.", 1)
_WIDTH = flags.DEFINE_integer("width", 128, "Of a state.", 1)
_BATCH = flags.DEFINE_integer("batch", 128, "Windows.", 1)
_LENGTH = flags.DEFINE_integer("length", 50, "Of a window.", 1)
_LABELLED = flags.DEFINE_float("labelled", 1e9, "Mean of a window's labels; all by default.", 0.0)
_SIZES = flags.DEFINE_list("sizes", "256:22,512:22,1536:25", "POSITIONS:LOG2_SCORES of each size.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Turns.", 1)

Contender = Callable[..., Any]


def inputs() -> tuple[Any, ...]:
    """States, kernel, bias, labels, and which positions count: the newest of each window."""
    rng = np.random.default_rng(0)
    shape = (_BATCH.value, _LENGTH.value)
    labelled = rng.poisson(min(_LABELLED.value, 1e6), shape[0]).clip(1, shape[1])
    counted = np.arange(shape[1]) >= shape[1] - labelled[:, None]
    states = rng.normal(size=(*shape, _WIDTH.value)).astype(np.float32)
    kernel = 0.1 * rng.normal(size=(_WIDTH.value, _ITEMS.value + 1)).astype(np.float32)
    bias = np.zeros(_ITEMS.value + 1, np.float32)
    labels = rng.integers(1, _ITEMS.value, shape)
    return tuple(map(jnp.asarray, (states, kernel, bias, labels, counted)))


def tiled(size: TileSize) -> Contender:
    """Value and gradients of states, kernel and bias, by the loss of the package."""

    def loss(states: Any, kernel: Any, bias: Any, labels: Any, counted: Any) -> Any:
        return next_item_loss(
            *(states, HeadWeights(kernel, bias), labels, counted),
            exclude_padding_class=True,
            catalogue=Catalogue(_ITEMS.value),
            tile=size,
        ).sum

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))


def dense(states: Any, kernel: Any, bias: Any, labels: Any, counted: Any) -> Any:
    """Value and gradients by all scores of the labelled positions at once."""

    def loss(states: Any, kernel: Any, bias: Any) -> Any:
        scores = (states @ kernel + bias).at[:, 0].set(-jnp.inf)
        own = jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(scores, axis=1) - own).sum()

    del counted
    return jax.value_and_grad(loss, (0, 1, 2))(states, kernel, bias)


def seconds(function: Contender, arguments: Sequence[Any]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - begin


def main(argv: Sequence[str]) -> None:
    """Prints one line for each contender."""
    del argv
    states, kernel, bias, labels, counted = inputs()
    places = np.nonzero(np.asarray(counted).reshape(-1))[0]
    chosen = states.reshape(-1, states.shape[-1])[places], labels.reshape(-1)[places]
    contenders: dict[str, tuple[Contender, tuple[Any, ...]]] = {}
    contenders["dense"] = (jax.jit(dense), (chosen[0], kernel, bias, chosen[1], None))
    for text in _SIZES.value:
        positions, scores = map(int, text.split(":"))
        size = TileSize(positions, 2**scores, 2**21)
        contenders[text] = (tiled(size), (states, kernel, bias, labels, counted))
    square = jax.random.normal(jax.random.key(0), (2048, 2048))
    contenders["2,048^3"] = (jax.jit(jnp.matmul), (square, square))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(1 + _REPEATS.value):  # the first one compiles
        for name, (function, arguments) in contenders.items():
            taken = seconds(function, arguments)
            if turn:
                times[name].append(taken)
    medians = {name: statistics.median(own) for name, own in times.items()}
    speed = 2 * 2048**3 / medians.pop("2,048^3")
    floor = 6 * len(places) * kernel.size / speed
    title = f"{len(places):,} labelled of {labels.size:,} positions, {_ITEMS.value:,} items"
    table = Table("contender", "ms", "dense takes", "to the floor", title=title)
    for name, own in medians.items():
        row = f"{1e3 * own:.1f}", f"{medians['dense'] / own:.2f}", f"{own / floor:.2f}"
        table.add_row(name, *row)
    make_console().print(table)


if __name__ == "__main__":
    app.run(main)
