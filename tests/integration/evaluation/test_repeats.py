"""What is measured is what is recommended, for users who take items again."""

import json

import numpy as np
import pytest

from tests.support.raw_data import tiny_config
from tssr_jax.evaluation.evaluate import run_baseline
from tssr_jax.evaluation.metrics import MISSED
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.training.loop import train


def cycling(tmp_path, num_users=12):
    """Each user goes through the same four items again and again."""
    config = tiny_config(tmp_path)
    config.data.update(min_user_interactions=1, min_item_interactions=1)
    rows = (
        f"u{user},i{(user + time) % 4},{86400 * time}\n"
        for user in range(num_users)
        for time in range(8)
    )
    path = tmp_path / "raw" / "interactions.csv"
    path.write_text("user,item,timestamp\n" + "".join(rows))
    config.train.num_epochs = 2
    return config


@pytest.mark.parametrize("way", [("pmap", 1, 1), ("shard_map", 2, 2)], ids=str)
@pytest.mark.parametrize("keep_seen", [False, True])
def test_users_who_cycle_through_their_items(tmp_path, keep_seen, way, capsys):
    config = cycling(tmp_path)
    config.evaluate.keep_seen = keep_seen
    config.update(parallel=way[0], num_devices=way[1], model_devices=way[2])
    metrics = train(config, tmp_path / "run")
    recommender = Recommender.from_workdir(tmp_path / "run", batch_size=8)
    (found,) = recommender.recommend([["i0", "i1", "i2", "i3"]], top_k=4)
    assert "100% of the targets are items that the user had before" in capsys.readouterr().out
    with np.load(tmp_path / "run" / "per_user.npz") as users:
        missed = users["test_rank"] == MISSED
    if keep_seen:  # four items compete, all of which are recommended
        assert len(found.items) == 4 and not missed.any() and metrics["recall@5"] == 1.0
    else:
        assert not found.items and missed.all() and metrics["recall@100"] == 0.0
        assert metrics["mrr"] < 1e-6


@pytest.mark.parametrize("kind", ["popularity", "item_knn"])
def test_baselines_miss_what_was_seen(tmp_path, kind):
    config = cycling(tmp_path)
    config.baseline.kind = kind
    assert run_baseline(config, tmp_path / "run")["recall@100"] == 0.0
    config.evaluate.keep_seen = True
    assert run_baseline(config, tmp_path / "other")["recall@100"] == 1.0
    saved = json.loads((tmp_path / "other" / "config.json").read_text())
    assert saved["evaluate"]["keep_seen"] is True
