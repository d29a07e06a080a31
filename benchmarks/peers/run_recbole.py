"""Runs SASRec of RecBole with cross entropy; it learns from the last label of a window only."""

import types
from typing import Any

import torch
from recbole.model.sequential_recommender.sasrec import SASRec

from benchmarks.worker import Repeat, serve


def prepare(case: dict[str, Any]) -> Repeat:
    """A repeat is a step on a new batch of full windows."""
    torch.manual_seed(0)
    config = {
        "USER_ID_FIELD": "user",
        "ITEM_ID_FIELD": "item",
        "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": "length",
        "NEG_PREFIX": "neg_",
        "MAX_ITEM_LIST_LENGTH": case["length"],
        "device": "cpu",
        "n_layers": case["num_unimodal"],
        "n_heads": case["num_heads"],
        "hidden_size": case["d_model"],
        "inner_size": case["d_ffn"],
        "hidden_dropout_prob": 0.1,
        "attn_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "loss_type": "CE",
    }
    dataset = types.SimpleNamespace(num=lambda _: case["num_items"] + 1)
    model = SASRec(config, dataset).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> None:
        windows = torch.randint(1, case["num_items"] + 1, (case["batch"], case["length"] + 1))
        optimizer.zero_grad()
        model.calculate_loss(
            {
                "item_list": windows[:, :-1],
                "length": torch.full((case["batch"],), case["length"]),
                "item": windows[:, -1],
            }
        ).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    serve(prepare)
