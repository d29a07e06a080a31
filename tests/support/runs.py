"""Runs of the command line and what they leave in a workdir."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from tests.support.model_losses import restore_newest
from tssr_jax.checkpoints.checkpointer import Checkpointer
from tssr_jax.models.init import init_params
from tssr_jax.run import build_run
from tssr_jax.training.optimizer import make_optimizer
from tssr_jax.training.state import create_train_state

ROOT = Path(__file__).parents[2]


def final_state(config, workdir):
    """The newest checkpoint's state, as plain arrays."""
    run = build_run(config)
    params = init_params(run.model, run.feature_widths, config.seed)
    target = create_train_state(params, make_optimizer(config.optimizer), config)
    with Checkpointer(workdir, run.data.num_items) as checkpointer:
        state, progress = restore_newest(checkpointer, target)
    return jax.tree.map(np.asarray, state), progress


def best_params(config, workdir):
    """The best checkpoint's parameters, as plain arrays."""
    target = build_run(config).initial_params()
    with Checkpointer(workdir, build_run(config).data.num_items) as checkpointer:
        params, _ = checkpointer.restore_best(target)
    return jax.tree.map(np.asarray, params)


def metrics_of(workdir):
    """metrics.jsonl without what depends on the clock."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    clock = {"sequences_per_second", "seconds_per_epoch"}
    return [{k: v for k, v in r.items() if k not in clock} for r in records]


def assert_same_run(config, first, second):
    (state, progress), (other_state, other_progress) = (
        final_state(config, workdir) for workdir in (first, second)
    )
    assert progress == other_progress
    jax.tree.map(np.testing.assert_array_equal, state, other_state)
    assert metrics_of(first) == metrics_of(second)
    texts = [(workdir / "test_metrics.json").read_text() for workdir in (first, second)]
    assert texts[0] == texts[1]


def value_of(config, section, name):
    for part in section.split("."):
        config = config[part]
    return config[name]


def command(config, workdir, *flags):
    return [
        sys.executable, "-m", "tssr_jax.main",
        f"--config=configs/paper.py:csv:{config.data.raw_dir}",
        f"--workdir={workdir}",
        f"--config.num_devices={config.num_devices}",
        *(f"--config.{section}.{name}={value_of(config, section, name)}"
          for section, names in {
              "data": ("cache_dir",),
              "content.text": ("model_dir", "max_tokens"),
              "model": ("d_model", "d_ffn", "num_heads", "num_cross_layers", "max_length"),
              "optimizer": ("learning_rate", "ema_decay"),
              "train": (
                  "batch_size", "num_epochs", "epochs_per_evaluation", "checkpoint_every_steps",
                  "early_stopping_patience", "log_every_steps", "time_noise",
              ),
              "evaluate": ("batch_size", "list_length"),
          }.items() for name in names),
        *flags,
    ]  # fmt: skip


def run_command(*args, **kwargs):
    return subprocess.run(*args, cwd=ROOT, capture_output=True, text=True, check=False, **kwargs)


def newest_step(workdir):
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=-1)
