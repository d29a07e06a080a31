"""Runs the PyTorch twin on a case; the first argument names how.

"twin" is the plain program. "twin, tuned" scores only positions with a label and fuses Adam, which
PyTorch does not by itself. "twin, argsort" ranks by a sort of all scores and a one-hot answer,
"twin, topk" by the best hundred.
"""

import os
import sys
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.cases import FEATURE_DIM
from benchmarks.peers.twin import Sizes, Twin, losses
from benchmarks.worker import Repeat, serve, steps_in_a_row

LARGEST_CUTOFF = 100


def make(case: dict[str, Any]) -> Twin:
    """The model of a case."""
    torch.manual_seed(0)
    return Twin(
        Sizes(
            case["num_items"],
            case["length"],
            FEATURE_DIM,
            case["d_model"],
            case["num_heads"],
            case["d_ffn"],
            case["num_unimodal"],
            case["num_cross"],
            streams=tuple(case["streams"]),
        )
    )


def windows(case: dict[str, Any]) -> list[torch.Tensor]:
    """Batches of windows, int64 [batch, length + 1]."""
    if case["kind"] == "epoch":
        saved = np.load(os.environ["BENCH_BATCHES"])
        return [torch.from_numpy(batch).long() for batch in saved]
    rng = np.random.default_rng(0)
    shape = (case["users"] or 20 * case["batch"], case["length"] + 1)
    items = torch.from_numpy(rng.integers(1, case["num_items"] + 1, shape))
    return list(items.split(case["batch"]))


def training(case: dict[str, Any], tuned: bool) -> Repeat:
    """Steps of training."""
    batches = windows(case)
    if case["kind"] == "epoch":
        case["num_items"] = int(os.environ["BENCH_NUM_ITEMS"])
    model = make(case).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=tuned or None)
    features = torch.randn(case["num_items"] + 1, FEATURE_DIM) if model.both else None
    place = 0

    def step() -> None:
        nonlocal place
        batch = batches[place % len(batches)]
        place += 1
        sequence, labels = batch[:, :-1], batch[:, 1:]
        optimizer.zero_grad()
        terms = losses(model, model(sequence, features), sequence, labels, labelled_only=tuned)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()

    return steps_in_a_row(step, case["steps"])


def ranking(case: dict[str, Any], by_sort: bool) -> Repeat:
    """Ranks of all users, their windows' items masked."""
    batches, model = windows(case), make(case).eval()
    features = torch.randn(case["num_items"] + 1, FEATURE_DIM)

    def ranks(batch: torch.Tensor) -> torch.Tensor:
        history, answers = batch[:, :-1], batch[:, -1]
        scores = model.output(model(history, features).fused[:, -1])
        own = scores.gather(1, answers[:, None])
        scores = scores.scatter(1, history, -1e9).scatter(1, answers[:, None], own)
        if by_sort:
            order = scores.argsort(dim=1, descending=True)
            labels = functional.one_hot(answers, scores.shape[1])
            return labels.gather(1, order).argmax(dim=1)
        best = scores.topk(LARGEST_CUTOFF, dim=1).indices
        return (best == answers[:, None]).int().argmax(dim=1)

    def rank() -> None:
        with torch.no_grad():
            for batch in batches:
                ranks(batch).numpy()

    return rank


def prepare(case: dict[str, Any]) -> Repeat:
    """What one repeat of the case runs."""
    how = sys.argv[2]
    if case["kind"] == "rank":
        return ranking(case, how == "twin, argsort")
    return training(case, how == "twin, tuned")


if __name__ == "__main__":
    serve(prepare)
