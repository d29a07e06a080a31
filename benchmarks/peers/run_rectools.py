"""Runs SASRec of RecTools, with its softmax over the catalogue, on a case with ids only."""

import statistics
import time
from typing import Any

import numpy as np
import pandas as pd
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

from benchmarks.worker import Repeat, serve

BATCHES = 6


# Seconds of each step; global, because the model gets a copy of the trainer and its callbacks.
SECONDS: list[float] = []


class Clock(Callback):
    """Times each training step, the wait for its batch left out."""

    def __init__(self) -> None:
        self._begin = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Starts the clock."""
        self._begin = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stops it; the optimiser has taken its step."""
        SECONDS.append(time.perf_counter() - self._begin)


def interactions(case: dict[str, Any]) -> pd.DataFrame:
    """Full windows of uniformly drawn items; every item occurs."""
    users, length = BATCHES * case["batch"], case["length"] + 1
    rng = np.random.default_rng(0)
    items = rng.integers(1, case["num_items"] + 1, users * length)
    items[: case["num_items"]] = np.arange(1, case["num_items"] + 1)
    return pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(users), length),
            Columns.Item: items,
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2020-01-01")
            + pd.to_timedelta(np.tile(np.arange(length), users), unit="D"),
        }
    )


def prepare(case: dict[str, Any]) -> Repeat:
    """A repeat is an epoch of a few batches."""
    dataset = Dataset.construct(interactions(case))

    def epoch() -> dict[str, float]:
        SECONDS.clear()

        def trainer() -> Trainer:
            return Trainer(
                max_epochs=1,
                accelerator="cpu",
                callbacks=[Clock()],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )

        SASRecModel(
            n_blocks=case["num_unimodal"],
            n_heads=case["num_heads"],
            n_factors=case["d_model"],
            session_max_len=case["length"],
            batch_size=case["batch"],
            loss="softmax",
            dropout_rate=0.1,
            get_trainer_func=trainer,
        ).fit(dataset)
        return {"seconds": statistics.median(SECONDS[1:])}

    return epoch


if __name__ == "__main__":
    serve(prepare, one_step=False)
