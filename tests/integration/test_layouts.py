"""The whole way for each source: raw files, preparation, training, test metrics."""

import json

import jax
import numpy as np
import pytest

from tests.support.raw_data import write_image_model, write_text_model
from tests.support.raw_layouts import NUM_ITEMS, NUM_USERS, write_layout
from tests.support.runs import best_params
from tssr_jax.evaluation.evaluate import evaluate
from tssr_jax.run import build_run
from tssr_jax.training.loop import train

# Of MovieLens and Amazon not every size and year: they differ in what is read, which
# tests/unit/data_pipeline/test_sources.py looks at, and in nothing behind it.
ONE_OF_EACH = ("hm", "yelp", "amazon-2014", "amazon-2023", "mind", "ml-10m", "ml-32m", "parquet")


def small(name, tmp_path):
    config = write_layout(name, tmp_path / "raw")
    config.data.cache_dir = str(tmp_path / "cache")
    config.content.text.model_dir = str(write_text_model(tmp_path / "text_model"))
    config.content.text.max_tokens = 8
    config.model.update(d_model=8, d_ffn=8, num_heads=2, num_cross_layers=1, max_length=8)
    config.num_devices = 1
    config.train.update(batch_size=16, num_epochs=1)
    config.evaluate.update(batch_size=NUM_USERS, list_length=0)
    return config


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_from_raw_files_to_test_metrics(tmp_path, name):
    config = small(name, tmp_path)
    metrics = train(config, tmp_path / "run")
    assert metrics["num_users"] == NUM_USERS and metrics["recall@100"] == 1.0
    assert evaluate(tmp_path / "run") == metrics
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["num_items"] == NUM_ITEMS
    report = data["report"]
    assert report["interactions_read"] == (
        report["interactions_kept"]
        + report["interactions_dropped_by_k_core"]
        + report["interactions_dropped_as_repeats"]
    )


@pytest.mark.parametrize("fusion", ["gate", pytest.param("sum", marks=pytest.mark.slow)])
def test_hm_with_pictures_and_both_encoders_trained(tmp_path, fusion):
    """All of the pictures' encoder is trained; the texts' gets adapters."""
    config = small("hm", tmp_path)
    config.content.update(modalities=("text", "image"), fusion=fusion)
    config.model.update(head="classes", mixing="gate", memory=())
    config.content.text.update(trained_layers=-1, lora_rank=2, micro_batch=8)
    config.content.image.update(
        model_file=str(write_image_model(tmp_path / "resnet.safetensors")),
        trained_stages=-1,
        learning_rate=1e-2,
        micro_batch=8,
    )
    config.optimizer.ema_decay = 0.5
    metrics = train(config, tmp_path / "run")
    assert evaluate(tmp_path / "run") == metrics
    run = build_run(config)
    images = run.encoders["image"]
    assert images.store.counts == {
        "images": NUM_ITEMS - 3, "images_broken": 1, "images_missing": 0, "items_without_image": 2
    }  # fmt: skip
    params = best_params(config, tmp_path / "run")
    projection = {"text", "image"} | ({"gate"} if fusion == "gate" else set())
    assert params["content_projection"].keys() == projection
    start, trained = images.params, params["image_encoder"]
    moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), trained, start)
    assert moved["stem"]["conv1"]["kernel"] > 1e-4
    kept = max(jax.tree.leaves(moved["batch_stats"]))
    assert kept < 1e-6  # rounding of the average
    assert params["text_encoder"]["layer_0"]["query"]["b"].any()
