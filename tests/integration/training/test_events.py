"""Training on interactions with events and weights, on one and on several devices."""

import numpy as np
import pytest

from tests.support.raw_data import tiny_config
from tests.support.runs import best_params, metrics_of
from tssr_jax.training.loop import train


def config_of(folder, **fields):
    """Every third interaction is a view, the others are bought; weights are 0.5 to 2."""
    config = tiny_config(folder)
    path = folder / "raw" / "interactions.csv"
    header, *lines = path.read_text().split()
    if "event" not in header:
        more = [f"{'view' if i % 3 == 0 else 'buy'},{0.5 + i % 4 / 2}" for i in range(len(lines))]
        rows = [f"{line},{own}" for line, own in zip(lines, more, strict=True)]
        path.write_text("\n".join([f"{header},event,weight", *rows]) + "\n")
    config.data.update(target_events=("buy",), weight_column="weight")
    config.model.dropout_rate = 0.0
    config.train.num_epochs = 2
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.parametrize("next_item", ["full", "sampled"])
@pytest.mark.parametrize("way", [("pmap", 4, 1), ("shard_map", 6, 3)], ids=str)
def test_training_does_not_depend_on_the_devices(tmp_path, way, next_item):
    params, losses = [], []
    for i, (parallel, devices, model_devices) in enumerate((("pmap", 1, 1), way)):
        packing = i == 1 and parallel == "pmap"
        config = config_of(tmp_path, **{"loss.next_item": next_item, "train.packing": packing})
        config.update(parallel=parallel, num_devices=devices, model_devices=model_devices)
        train(config, tmp_path / str(i))
        params.append(best_params(config, tmp_path / str(i)))
        losses.append(
            [
                x["train/prediction"]
                for x in metrics_of(tmp_path / str(i))
                if "train/prediction" in x
            ]
        )
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    for name in ("event_embedding", "token_embedding"):
        one, other = (np.asarray(own[name]["embedding"]) for own in params)
        np.testing.assert_allclose(other[: len(one)], one[: len(other)], atol=5e-4)
    moved = np.abs(np.diff(np.asarray(params[0]["event_embedding"]["embedding"]), axis=0))
    assert moved.max() > 1e-3


def test_what_weighs_nothing_teaches_nothing(tmp_path):
    """With all weights 0 there is no loss, and nothing is divided by their sum."""
    config = config_of(
        tmp_path, **{"loss.lambda_user": 0.0, "loss.lambda_item": 0.0, "train.num_epochs": 1}
    )
    config.optimizer.weight_decay = 0.0
    path = tmp_path / "raw" / "interactions.csv"
    header, *lines = path.read_text().split()
    rows = [f"{line.rpartition(',')[0]},0" for line in lines]
    path.write_text("\n".join([header, *rows]) + "\n")
    train(config, tmp_path / "run")
    (first,) = [x for x in metrics_of(tmp_path / "run") if "train/prediction" in x]
    assert first["train/prediction"] == 0 and first["train/total"] == 0
    params = best_params(config, tmp_path / "run")
    assert np.isfinite(np.asarray(params["token_embedding"]["embedding"])).all()
