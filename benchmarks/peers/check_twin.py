"""Raises unless the twin has the reference's losses and gradients: the same mathematics.

    .venv-peers/bin/python -m benchmarks.peers.check_twin

`make bench` does this before anything is timed.
"""

import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.twin import Sizes, Twin, losses

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
TOLERANCE = 2e-5


def check(path: Path) -> float:
    """The largest difference of a case's losses and of three of its gradients."""
    case, grads = np.load(path), np.load(path.with_name(f"{path.stem}_grads.npz"))
    settings = json.loads(str(case["config_json"]))
    model = Twin(
        Sizes(
            settings["num_items"],
            settings["max_len"],
            settings["feature_dim"],
            settings["d_model"],
            settings["num_heads"],
            settings["d_ffn"],
            settings["num_unimodal_layers"],
            settings["num_cross_layers"],
            dropout=0.0,
        )
    )
    model.load({k.removeprefix("params/"): case[k] for k in case if k.startswith("params/")})
    sequence, labels = (
        torch.from_numpy(case[f"inputs/{name}"]).long() for name in ("item_sequence", "labels")
    )
    outputs = model(sequence, torch.from_numpy(case["inputs/item_features"]))
    differences = []
    for labelled_only in (False, True):
        terms = losses(
            model,
            outputs,
            sequence,
            labels,
            temperature=settings["user_temperature"],
            labelled_only=labelled_only,
        )
        differences += [abs(float(v.detach() - case[f"losses/{k}"])) for k, v in terms.items()]
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in (
        ("token_embedding/embedding", model.token_embedding.weight),
        ("gate/kernel", model.gate.weight),
        ("id_cross/layer_0/ffn/up/kernel", model.id_cross[0].ffn.up.weight),
    ):
        own = parameter.grad.numpy()
        own = own.T if name.endswith("kernel") else own
        differences.append(float(np.abs(own - grads[f"grads/{name}"]).max()))
    return max(differences)


def main() -> None:
    """Checks all cases."""
    for path in sorted(GOLDEN.glob("case_*.npz")):
        if path.stem.endswith("_grads"):
            continue
        difference = check(path)
        if not difference < TOLERANCE:
            raise SystemExit(f"The twin differs from {path.name} by {difference:.1e}.")
        print(f"{path.name}: {difference:.1e}")


if __name__ == "__main__":
    main()
