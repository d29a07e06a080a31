"""Runs the PyTorch twin on a case; the second argument names how.

"twin" is the plain program. "twin, tuned" scores only positions with a label and fuses Adam, which
PyTorch does not by itself. "twin, argsort" ranks by a sort of all scores and a one-hot answer,
"twin, topk" by the best hundred.
"""

import itertools
import os
import sys
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import BertConfig, BertModel

from benchmarks.cases import FEATURE_DIM
from benchmarks.peers.twin import Sizes, Twin, losses
from benchmarks.worker import Repeat, serve

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
    """Batches of made-up windows, int64 [batch, length + 1]."""
    rng = np.random.default_rng(0)
    shape = (case["users"] or 20 * case["batch"], case["length"] + 1)
    items = torch.from_numpy(rng.integers(1, case["num_items"] + 1, shape))
    return list(items.split(case["batch"]))


class TextEncoder(torch.nn.Module):
    """The layers of all-MiniLM-L6-v2 by transformers, for each distinct item of a batch once.

    Args:
      tokens: int32 [items + 1, length].
      lengths: int32 [items + 1].
    """

    def __init__(self, tokens: np.ndarray, lengths: np.ndarray):
        super().__init__()
        sizes = BertConfig(
            hidden_size=FEATURE_DIM, num_hidden_layers=6, num_attention_heads=12,
            intermediate_size=1_536, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.bert = BertModel(sizes, add_pooling_layer=False)
        self._tokens, self._lengths = torch.from_numpy(tokens), torch.from_numpy(lengths)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        """Vectors of the items of int64 [batch, length], in a table [items + 1, width]."""
        items = sequence.unique()
        items = items[self._lengths[items] > 0]
        longest = int(self._lengths[items].max())
        mask = torch.arange(longest) < self._lengths[items, None]
        states = self.bert(self._tokens[items, :longest], mask.long()).last_hidden_state
        means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        table = states.new_zeros(len(self._lengths), FEATURE_DIM)
        return table.index_put((items,), functional.normalize(means, dim=-1))


def training(case: dict[str, Any], tuned: bool) -> Repeat:
    """Steps of training."""
    batches, recorded, encoder = [], None, None
    if case["kind"] == "epoch":
        recorded = np.load(os.environ["BENCH_RECORDED"])
        case["num_items"] = int(recorded["num_items"])
        batches = [torch.from_numpy(batch).long() for batch in recorded["windows"]]
    model = make(case).train()
    parameters = list(model.parameters())
    features = torch.randn(case["num_items"] + 1, FEATURE_DIM) if model.both else None
    if recorded is not None and case["trained_text"]:
        encoder = TextEncoder(recorded["tokens"], recorded["lengths"]).train()
        parameters += encoder.parameters()
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=tuned or None)
    endless = itertools.cycle(batches or windows(case))

    def step() -> None:
        batch = next(endless)
        sequence, labels = batch[:, :-1], batch[:, 1:]
        optimizer.zero_grad()
        outputs = model(sequence, features if encoder is None else encoder(sequence))
        terms = losses(model, outputs, sequence, labels, labelled_only=tuned)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()

    return step


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
