"""The PyTorch twin on an accelerator: seconds of a step and of a ranking, for several cases.

    python -m benchmarks.peers.on_device '[{"name": ..., "kind": "train", ...}]' [SECONDS]

Prints one line of JSON for each case and way, and stops starting new ones after SECONDS. Ways are
the plain program, the same by `torch.compile` (positions without a label skipped, Adam fused), and
this in bfloat16 by autocast. Products of float32 are exact (no TF32), as ours are by default.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.cases import FEATURE_DIM
from benchmarks.peers.twin import Sizes, Twin, losses
from benchmarks.worker import median_seconds

LARGEST_CUTOFF = 100
WAYS = ("plain", "compiled", "compiled, bfloat16")


def training(case: dict[str, Any], way: str, device: str) -> Callable[[], None]:
    """One step of training."""
    windows, model, features = made_up(case, device)
    tuned = way != "plain"
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=tuned or None)
    sequence, labels = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def loss() -> torch.Tensor:
        outputs = model(sequence, features if model.both else None)
        # Every position has a label here: choosing those that have one would only break the graph.
        return torch.stack(list(losses(model, outputs, sequence, labels).values())).sum()

    run = torch.compile(loss) if tuned else loss

    def step() -> None:
        optimizer.zero_grad()
        with in_bfloat16(device, way):
            total = run()
        total.backward()
        optimizer.step()

    return step


def ranking(case: dict[str, Any], way: str, device: str) -> Callable[[], None]:
    """The best hundred items of all users, and their answers' places among them."""
    windows, model, features = made_up(case, device)
    history, answers = windows[:, :-1], windows[:, -1]

    def ranks() -> torch.Tensor:
        scores = model.output(model(history, features).fused[:, -1]).float()
        own = scores.gather(1, answers[:, None])
        scores = scores.scatter(1, history, -1e9).scatter(1, answers[:, None], own)
        best = scores.topk(LARGEST_CUTOFF, dim=1).indices
        return (best == answers[:, None]).int().argmax(dim=1)

    run = ranks if way == "plain" else torch.compile(ranks)
    model.eval()

    def rank() -> None:
        with torch.no_grad(), in_bfloat16(device, way):
            run().cpu()

    return rank


def made_up(case: dict[str, Any], device: str) -> tuple[torch.Tensor, Twin, torch.Tensor]:
    """Full windows int64 [users, length + 1], a model, and features."""
    torch.manual_seed(0)
    sizes = Sizes(
        case["num_items"], case["length"], FEATURE_DIM, case["d_model"], case["num_heads"],
        case["d_ffn"], case["num_unimodal"], case["num_cross"], streams=tuple(case["streams"]),
    )  # fmt: skip
    shape = (case["users"] or case["batch"], case["length"] + 1)
    items = np.random.default_rng(0).integers(1, case["num_items"] + 1, shape)
    features = torch.randn(case["num_items"] + 1, FEATURE_DIM, device=device)
    return torch.from_numpy(items).to(device), Twin(sizes).train().to(device), features


def in_bfloat16(device: str, way: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast, if the way asks for it."""
    if "bfloat16" not in way:
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16)


def measure(run: Callable[[], None], device: str) -> dict[str, float]:
    """Seconds of the first call, and the median of more."""

    def once() -> None:
        run()
        if device == "cuda":
            torch.cuda.synchronize()

    begin = time.perf_counter()
    once()
    found = {"first": time.perf_counter() - begin, "seconds": median_seconds(once)}
    if device == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def main() -> None:
    """Measures all cases in all ways."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    until = time.monotonic() + float(sys.argv[2]) if len(sys.argv) > 2 else float("inf")
    for case in json.loads(sys.argv[1]):
        for way in WAYS:
            if time.monotonic() > until:
                return
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            torch.compiler.reset()
            make = ranking if case["kind"] == "rank" else training
            found: dict[str, Any] = {"case": case["name"], "way": way}
            try:
                found |= measure(make(case, way, device), device)
            except torch.OutOfMemoryError:
                found["error"] = "out of memory"
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
