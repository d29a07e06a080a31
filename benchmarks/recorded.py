"""Writes batches of real data for the peers: padded windows and, if asked for, the items' tokens.

    python -m benchmarks.recorded CASE FILE.npz

A case as `benchmarks.cases.Case.fields` gives it, in JSON. The file has `windows` int32 [batches,
batch, length + 1], `num_items`, and for a trained text encoder `tokens` int32 [items + 1, length]
and `lengths` int32 [items + 1].
"""

import json
import sys
from typing import Any

import numpy as np

from benchmarks.ours import configure
from tssr_jax.data_pipeline.input_pipeline import make_train_batches
from tssr_jax.run import build_run

BATCHES = 60


def record(case: dict[str, Any]) -> dict[str, Any]:
    """The arrays of the file."""
    config = configure(case)
    run = build_run(config)
    config.train.packing = False
    stream = make_train_batches(run.sequences, config).iterate(0)
    batches = [next(stream) for _ in range(BATCHES)]
    windows = [np.c_[batch["item_sequence"], batch["labels"][:, -1:]] for batch in batches]
    arrays: dict[str, Any] = {
        "windows": np.stack(windows),
        "num_items": np.array(run.data.num_items),
    }
    if case["trained_text"]:
        inputs = run.content.inputs["text"]
        arrays |= {"tokens": np.asarray(inputs.tokens), "lengths": np.asarray(inputs.lengths)}
    return arrays


if __name__ == "__main__":
    np.savez(sys.argv[2], **record(json.loads(sys.argv[1])))
