"""One command for a GPU or a TPU: are the numbers right, and how fast are they?

    python -m benchmarks.accelerator --output=accelerator.json
    python -m benchmarks.accelerator --small            # a rehearsal on a processor

It needs JAX, Flax, Optax, Orbax, ml_collections, absl, etils, safetensors and rich. It needs no
TensorFlow, no data and no network: arrays are made on the spot, and golden numbers come from
tests/golden. After `--minutes` it ends with the next row, and tells which sections it left out.
With PyTorch (`--peers_python`), the twin runs the same cases. Each row is written to `--output` at
once.

Sections: golden cases in float32; all devices against one; seconds of a step, use of the peak and
memory; tile sizes of the next-item loss and of the ring; ranking and exact against approximate
lists; the twin.
"""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the twin needs memory, too

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.cases import CASES, Case
from benchmarks.on_device import Program, Ranking, configure, peak
from benchmarks.worker import median_seconds
from tests.support.model_losses import loss_terms, term_weights
from tests.support.reference_numbers import GoldenCase, case_paths
from tssr_jax.losses.info_nce import Keys, info_nce
from tssr_jax.losses.next_item import TileSize, next_item_loss
from tssr_jax.losses.objective import total_loss
from tssr_jax.models.apply import encode
from tssr_jax.models.head import HeadWeights
from tssr_jax.parallel.devices import exactly

_OUTPUT = flags.DEFINE_string("output", "runs/accelerator.json", "Where all numbers are written.")
_MINUTES = flags.DEFINE_float("minutes", 8.0, "When to end.", 0.0)
_SMALL = flags.DEFINE_bool("small", False, "Small sizes: a rehearsal on a processor.")
_PEERS = flags.DEFINE_string("peers_python", "", "An interpreter with PyTorch; without one, none.")
_ONLY = flags.DEFINE_list("only", [], "Only these sections.")

# A section yields rows: what is measured, and its numbers.
Row = dict[str, Any]
LARGE = Case("length 50, 105k items, batch 4,096", "train", 50, 105_000, (), batch=4_096)
RANK = Case("rank 1,000 users, length 10, 105k items", "rank", 10, 105_000, (), users=1_000)


def cases() -> list[Case]:
    """The cases whose steps are timed; tiny ones in a rehearsal."""
    if _SMALL.value:
        return [Case("small", "train", 4, 50, (), batch=8, d_model=16, d_ffn=16, num_heads=2)]
    return [*CASES[:3], LARGE]


def golden() -> Iterator[Row]:
    """Differences from the reference implementation's outputs, losses and gradients."""
    bounds = {"states": 1e-5, "losses": 2e-5, "gradients": 1e-4}
    for path in case_paths():
        errors = golden_errors(GoldenCase.load(path))
        within = all(errors[name] <= bound for name, bound in bounds.items())
        yield {"case": path.stem, **errors, "within bounds": within}


def golden_errors(case: GoldenCase) -> dict[str, float]:
    """The largest differences of a case."""
    model, batch = case.model(), case.batch()
    features = jnp.asarray(case.inputs["item_features"])
    config = case.config()

    def total(params: Any) -> Any:
        outputs = encode(model, params, batch["item_sequence"], features)
        terms = loss_terms(model, params, outputs, batch, config)
        return total_loss(terms, term_weights(config)), (terms, outputs.fused)

    run = jax.jit(exactly(jax.value_and_grad(total, has_aux=True)))
    (value, (terms, fused)), grads = run(case.params)
    losses = {name: term.mean() for name, term in terms.items()} | {"total": value}
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(case.grads), strict=True)
    return {
        "states": worst(fused, case.outputs["fused"]),
        "losses": max(worst(losses[name], own) for name, own in case.losses.items()),
        "gradients": max(worst(one, other) for one, other in pairs),
    }


def worst(one: Any, other: Any) -> float:
    """The largest difference between two arrays."""
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


def all_devices() -> Iterator[Row]:
    """Parameters after three steps on all devices, and with a cut catalogue, against one device."""
    number = jax.device_count()
    case = Case("", "train", 6, 8 * number - 1, (), batch=2 * number, d_model=16, d_ffn=16)
    known: list[Any] = []
    for devices, shards in ((1, 1), (number, 1), (number, number)) if number > 1 else ():
        config = configure(case.fields())
        config.model_devices = shards
        program = Program(config, jax.devices()[:devices], case.num_items)
        for _ in range(3):
            program()
        params = jax.tree.leaves(program.state.params)
        if not known:
            known = params
            continue
        error = max(worst(one, other) for one, other in zip(known, params, strict=True))
        yield {
            "devices": devices,
            "shards of the catalogue": shards,
            "difference": error,
            "within bounds": error < 2e-5,
        }


def steps() -> Iterator[Row]:
    """Seconds of a step, use of the measured peak, and memory."""
    size = 256 if _SMALL.value else 8_192
    rates = {dtype: peak(size, dtype) for dtype in ("float32", "bfloat16")}
    for dtype, rate in rates.items():
        yield {"case": f"{size:,}^3", "products": dtype, "TFLOP/s": rate / 1e12}
    for case in cases():
        for dtype, rate in rates.items():
            config = configure(case.fields())
            config.model.compute_dtype = dtype
            row: Row = {"case": case.name, "products": dtype}
            try:
                program = Program(config, jax.devices()[:1], case.num_items)
                row["seconds"] = median_seconds(program)
            except jax.errors.JaxRuntimeError as error:
                yield row | {"error": str(error)[:200]}
                continue
            memory = jax.devices()[0].memory_stats() or {}
            row |= {
                "windows/s": case.batch / row["seconds"],
                "share of peak": case.flops() / row["seconds"] / rate,
                "compiling": program.compile_seconds,
                "arguments": program.memory[0], "beside them": program.memory[1],
                "peak bytes so far": memory.get("peak_bytes_in_use"),
            }  # fmt: skip
            del program
            yield row


def next_item_gradients(tile: TileSize, dtype: str) -> Any:
    """A compiled function of states, kernel and labels."""

    def loss(states: Any, kernel: Any, labels: Any) -> Any:
        head = HeadWeights(kernel, jnp.zeros(kernel.shape[1]))
        return next_item_loss(states, head, labels, compute_dtype=dtype, tile=tile).sum

    return jax.jit(exactly(jax.grad(loss, (0, 1))))


def tiles() -> Iterator[Row]:
    """Seconds of the next-item loss and its gradients, and of the ring's, by size of tile."""
    rng = np.random.default_rng(0)
    small = _SMALL.value
    for rows, items in ((64, 50),) if small else ((12_800, 105_000), (204_800, 105_000)):
        states = jnp.asarray(rng.normal(size=(rows, 1, 128)).astype(np.float32))
        kernel = jnp.asarray(0.1 * rng.normal(size=(128, items + 1)).astype(np.float32))
        labels = jnp.asarray(rng.integers(1, items + 1, (rows, 1), np.int32))
        given = (states, kernel, labels)
        for positions in (16, 32) if small else (512, 1_536, 4_096):
            for scores in (2**22, 2**25, 2**29):
                tile = TileSize(positions, scores, 2**21 if scores < 2**25 else 2**23)

                for dtype in ("float32", "bfloat16"):
                    run = next_item_gradients(tile, dtype)
                    seconds = median_seconds(lambda: jax.block_until_ready(run(*given)), 5, 2.0)  # noqa: B023
                    yield {
                        "loss": "next item", "rows": rows, "items": items, "products": dtype,
                        "positions": positions, "scores": scores, "seconds": seconds,
                    }  # fmt: skip
    groups, rows = (3, 16) if small else (50, 4_096)
    vectors = jnp.asarray(rng.normal(size=(groups, rows, 128)).astype(np.float32))
    mask, ids = jnp.ones((groups, rows), bool), jnp.asarray(rng.integers(1, 999, (groups, rows)))
    for negatives, scores in (("all_gather", 0), *(("ring", 2**n) for n in (22, 25, 28))):

        def contrast(queries: Any, how: str = negatives, scores: int = scores) -> Any:
            return info_nce(queries, Keys(queries, mask, ids), mask, how, None, scores).sum

        run = jax.jit(exactly(jax.grad(contrast)))
        seconds = median_seconds(lambda: jax.block_until_ready(run(vectors)), 5, 2.0)  # noqa: B023
        yield {"loss": negatives, "rows": rows, "scores": scores, "seconds": seconds}


def ranking() -> Iterator[Row]:
    """Seconds to rank users, with and without lists; lists by approximation, and their recall."""
    case = cases()[0] if _SMALL.value else RANK
    users, k = (16, 5) if _SMALL.value else (case.users, 100)
    for lists in (0, k):
        rank = Ranking(
            configure(case.fields()), jax.devices()[0], case.num_items, users=users, k=lists
        )
        yield {"what": f"ranks, lists of {lists}", "seconds": median_seconds(rank)}
    scores = jax.random.normal(jax.random.key(0), (users, case.num_items + 1))
    exact = jax.jit(lambda x: jax.lax.top_k(x, k)[1])
    known = np.asarray(exact(scores))
    yield {
        "what": f"lax.top_k, {k}",
        "seconds": median_seconds(lambda: jax.block_until_ready(exact(scores))),
    }
    for target in (0.95, 0.99):
        some = jax.jit(lambda x, target=target: jax.lax.approx_max_k(x, k, recall_target=target)[1])
        found = np.asarray(some(scores))
        hits = [len(np.intersect1d(one, other)) for one, other in zip(known, found, strict=True)]
        yield {
            "what": f"approx_max_k, {k}, target {target}", "recall": float(np.mean(hits)) / k,
            "seconds": median_seconds(lambda: jax.block_until_ready(some(scores))),  # noqa: B023
        }  # fmt: skip


def twin() -> Iterator[Row]:
    """The PyTorch twin on the same cases."""
    if not _PEERS.value:
        yield {"note": "left out: --peers_python names no interpreter"}
        return
    given = [case.fields() for case in (*cases(), *([] if _SMALL.value else [RANK]))]
    left = 60 * _MINUTES.value - (time.monotonic() - _START)
    seconds = max(0.0, min(180.0, left - 20))
    command = [_PEERS.value, "-m", "benchmarks.peers.on_device", json.dumps(given), str(seconds)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        # It looks at the time between programs only, and compiling one may take long.
        timer = threading.Timer(seconds + 60, process.kill)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
        timer.cancel()
    if process.returncode:
        yield {"error": f"the twin's process ended with status {process.returncode}"}


SECTIONS: dict[str, Callable[[], Iterator[Row]]] = {
    "golden": golden,
    "devices": all_devices,
    "steps": steps,
    "twin": twin,
    "ranking": ranking,
    "tiles": tiles,
}
_START = time.monotonic()


def shown(value: Any) -> str:
    """A number as people read it."""
    if not isinstance(value, float):
        return (
            f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        )
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def main(argv: Sequence[str]) -> None:
    """Runs the sections and prints a table of each."""
    del argv
    console, device = Console(width=None if sys.stdout.isatty() else 150), jax.devices()[0]
    found: dict[str, Any] = {
        "device": device.device_kind, "number": jax.device_count(), "jax": jax.__version__,
        "python": platform.python_version(), "command": " ".join(sys.argv[1:]),
    }  # fmt: skip
    output = Path(_OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    for name in _ONLY.value or SECTIONS:
        rows: list[Row] = []
        late = False
        for row in SECTIONS[name]():
            rows.append(row)
            console.print(name, *(f"{key} {shown(value)}" for key, value in row.items()), sep="; ")
            late = time.monotonic() - _START > 60 * _MINUTES.value
            found[name] = rows
            output.write_text(json.dumps(found, indent=2))
            if late:
                break
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = Table(*columns, title=f"{name}, {found['number']} x {found['device']}")
        for row in rows:
            table.add_row(*(shown(row[key]) if key in row else "" for key in columns))
        console.print(table)
        if late:
            left = [other for other in SECTIONS if other not in found]
            console.print(f"Time is up in {name}; left out: {', '.join(left) or 'nothing else'}.")
            break
    checked = [*found.get("golden", []), *found.get("devices", [])]
    if not all(row["within bounds"] for row in checked):
        sys.exit("Numbers are out of bounds: see the tables.")


if __name__ == "__main__":
    app.run(main)
