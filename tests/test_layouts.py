"""The whole way for each source: raw files, preparation, training, test metrics."""

import json

import pytest

from tests.raw_data import write_text_model
from tests.raw_layouts import NUM_ITEMS, NUM_USERS, write_layout
from tssr_jax.evaluate import evaluate
from tssr_jax.train import train

# Of MovieLens and Amazon not every size and year: they differ in what is read, which
# tests/data_pipeline/test_sources.py looks at, and in nothing behind it.
ONE_OF_EACH = ("hm", "yelp", "amazon-2014", "amazon-2023", "mind", "ml-10m", "ml-32m", "parquet")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_from_raw_files_to_test_metrics(tmp_path, name):
    config = write_layout(name, tmp_path / "raw")
    config.data.cache_dir = str(tmp_path / "cache")
    config.content.text_model_dir = str(write_text_model(tmp_path / "text_model"))
    config.content.max_tokens = 8
    config.model.update(d_model=8, d_ffn=8, num_heads=2, num_cross_layers=1, max_length=8)
    config.num_devices = 1
    config.train.update(batch_size=16, num_epochs=1)
    config.evaluate.batch_size = NUM_USERS
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
