"""How much an index of items' vectors finds, and how fast, at catalogues of several sizes.

    python -m benchmarks.index --workdir=RUN --items=105000 --items=1000000

The vectors are those of a run's items (with biases), drawn with replacement, plus Gaussian noise of
half of each column's standard deviation; so they are spread as vectors are that were trained. The
states are those of 500 users of the run. Memories are left out. An index is built by all cores.
Each list is asked for alone, by the index and by a product with all vectors (NumPy), in turns, on
one thread (set OMP_NUM_THREADS=1 for NumPy).
"""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
from absl import app, flags, logging
from rich.table import Table

from tssr_jax.recommending import index
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.reporting import make_console

_WORKDIR = flags.DEFINE_string("workdir", None, "Of a trained run.", required=True)
_ITEMS = flags.DEFINE_multi_integer("items", [105_000], "Sizes of catalogues.")
_LENGTH, _ASKED, _NOISE = 100, 100, 0.5


def milliseconds(vectors: np.ndarray, built: object, states: np.ndarray) -> tuple[float, float]:
    """Medians for a list, by the index and by all products, in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for state in states[:_ASKED]:
        for own, by_index in zip(times, (True, False), strict=True):
            start = time.perf_counter()
            if by_index:
                index.search(built, state[None], _LENGTH)
            else:
                scores = vectors @ index.with_one(state[None])[0]
                best = np.argpartition(-scores, _LENGTH)[:_LENGTH]
                best[np.argsort(-scores[best])]
            own.append(1_000 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    recommender = Recommender.from_workdir(_WORKDIR.value)
    own = index.indexed_vectors(recommender.tables[2], len(recommender.items.ids))
    states = index.states_of_users(recommender)
    rng = np.random.default_rng(0)
    table = Table("items", "seconds to build", "MiB", *("recall@10", "recall@100"))
    for name in ("ms by index", "ms by all", "ratio"):
        table.add_column(name, justify="right")
    for number in _ITEMS.value:
        vectors = own[rng.integers(len(own), size=number)]
        vectors += rng.normal(scale=_NOISE * own.std(axis=0), size=vectors.shape).astype(np.float32)
        print(f"Building the index of {number:,} items ...", flush=True)
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        start = time.perf_counter()
        built = index.build(vectors)
        seconds = time.perf_counter() - start
        faiss.omp_set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            faiss.write_index(built, f"{folder}/{index.FILE}")
            size = (Path(folder) / index.FILE).stat().st_size
        found = index.recall(built, vectors, states)
        print(", ".join(f"{name} {own:.4f}" for name, own in found.items()), flush=True)
        by_index, by_all = milliseconds(vectors, built, states)
        table.add_row(
            *(f"{number:,}", f"{seconds:.0f}", f"{size / 2**20:,.0f}"),
            *(f"{found[f'recall@{n}']:.4f}" for n in index.LENGTHS),
            *(f"{by_index:.2f}", f"{by_all:.2f}", f"{by_all / by_index:.1f}"),
        )
    make_console().print(table)


if __name__ == "__main__":
    app.run(main)
