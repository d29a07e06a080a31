"""The golden numbers of the reference implementation (see tests/golden/README.md)."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util

from tssr_jax.config import default
from tssr_jax.models.init import make_model
from tssr_jax.models.tssr import TSSR
from tssr_jax.parallel.catalogue import Catalogue

FOLDER = Path(os.environ.get("TSSR_GOLDEN_DIR") or Path(__file__).parents[1] / "golden")


def case_paths() -> list[Path]:
    """All cases in the folder; every case has its gradients in a second file beside it."""
    paths = sorted(p for p in FOLDER.glob("case_*.npz") if not p.stem.endswith("_grads"))
    if not paths:
        raise FileNotFoundError(f"no case_*.npz in {FOLDER} (TSSR_GOLDEN_DIR)")
    return paths


def with_stacked_blocks(tree: dict) -> dict:
    """The files' blocks, each by itself, as our parameters: [layers, streams, ...] arrays."""
    layers = []
    for kind in ("encoder", "cross"):
        streams = [tree.pop(f"{stream}_{kind}") for stream in ("id", "content")]
        for i in range(len(streams[0])):
            blocks = (stream[f"layer_{i}"] for stream in streams)
            layers.append(jax.tree.map(lambda *x: np.stack(x), *blocks))
    return tree | {"blocks": jax.tree.map(lambda *x: np.stack(x), *layers)}


@dataclasses.dataclass(frozen=True)
class GoldenCase:
    """One case: its settings, and its arrays grouped by the first part of their key."""

    settings: dict
    inputs: dict[str, np.ndarray]
    params: dict
    outputs: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]
    metrics: dict[str, np.ndarray]
    trajectory: np.ndarray
    grads: dict

    @classmethod
    def load(cls, path: Path) -> "GoldenCase":
        arrays = dict(np.load(path))
        arrays |= dict(np.load(path.with_name(path.stem + "_grads.npz")))
        settings = json.loads(str(arrays.pop("config_json")))
        groups: dict = traverse_util.unflatten_dict(arrays, sep="/")
        groups |= {name: with_stacked_blocks(groups[name]) for name in ("params", "grads")}
        return cls(settings=settings, trajectory=groups.pop("trajectory")["losses"], **groups)

    def config(self) -> ml_collections.ConfigDict:
        """The settings of the case as a configuration in reference mode."""
        config = default.get_config()
        s = self.settings
        for name in ("d_model", "num_heads", "d_ffn", "num_unimodal_layers", "num_cross_layers"):
            config.model[name] = s[name]
        config.model.dropout_rate = 0.0
        config.model.no_content_vector = False
        config.model.max_length = s["max_len"]
        config.loss.user_temperature = s["user_temperature"]
        for habit in config.corrections:
            config.corrections[habit] = False
        config.optimizer.learning_rate = s["trajectory_learning_rate"]
        return config

    def model(self) -> TSSR:
        return make_model(self.config(), Catalogue(self.settings["num_items"]))

    def batch(self) -> dict[str, jax.Array]:
        sequence = self.inputs["item_sequence"]
        return {
            "item_sequence": jnp.asarray(sequence),
            "labels": jnp.asarray(self.inputs["labels"]),
            "row_mask": jnp.ones(len(sequence), bool),
        }
