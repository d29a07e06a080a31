"""Models that read one's own vectors: trained, carried, and asked for new items."""

import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.support.raw_data import tiny_config
from tests.support.runs import ROOT
from tssr_jax.config import default_config
from tssr_jax.content.own_vectors import own_vectors
from tssr_jax.errors import UserError
from tssr_jax.evaluation.evaluate import evaluate
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.training.loop import train

WIDTH = 6


@pytest.fixture(name="config")
def fixture_config(tmp_path):
    """Items are a Parquet table whose vectors say where an item lies on the users' way."""
    config = tiny_config(tmp_path)
    raw = tmp_path / "raw"
    items = pl.read_csv(raw / "items.csv")
    angles = 2 * np.pi * np.arange(len(items)) / len(items)
    vectors = np.stack([f(k * angles) for k in (1, 2, 3) for f in (np.sin, np.cos)], 1)
    lists = [*vectors[:-1].tolist(), None]
    items.with_columns(vector=pl.Series(lists, dtype=pl.List(pl.Float64))).write_parquet(
        raw / "items.parquet"
    )
    (raw / "items.csv").unlink()
    config.model.head = "tied"
    return config


@pytest.mark.parametrize("modalities", [("vectors",), ("text", "vectors")])
def test_train_carry_and_ask_for_new_items(config, tmp_path, modalities):
    config.content.modalities = modalities
    config.train.num_epochs = 12
    workdir = tmp_path / "run"
    metrics = train(config, workdir)
    carried = shutil.copytree(workdir, tmp_path / "elsewhere" / "run")
    raw = tmp_path / "raw"
    items = pl.read_parquet(raw / "items.parquet")
    shutil.rmtree(raw)
    assert evaluate(workdir)["ndcg@10"] == pytest.approx(metrics["ndcg@10"])

    # A new item with the vector of the one that follows in every history.
    new = items.filter(pl.col("item").is_in(["i7", "i12"])).with_columns(
        item=pl.Series(["near", "far"])
    )
    new.write_parquet(tmp_path / "new.parquet")
    recommender = Recommender.from_workdir(carried, new_items=tmp_path / "new.parquet")
    (found,) = recommender.recommend([["i4", "i5", "i6"]], top_k=22)
    order = [item.item for item in found.items]
    assert order.index("near") < order.index("far")

    pl.DataFrame({"item": ["x"], "title": ["red"], "vector": [[1.0, 2.0]]}).write_parquet(
        tmp_path / "narrow.parquet"
    )
    with pytest.raises(UserError, match=r"have 2 numbers; those that .* trained on have 6"):
        Recommender.from_workdir(carried, new_items=tmp_path / "narrow.parquet")


def test_three_modalities_have_no_gate(config, tmp_path):
    config.content.modalities = ("text", "image", "vectors")
    config.content.fusion = "gate"
    with pytest.raises(UserError, match="lies between two modalities"):
        train(config, tmp_path / "run")


def test_the_code_of_the_guide(tmp_path, monkeypatch):
    """What it writes is what training reads."""
    text = (ROOT / "docs" / "guides" / "content.md").read_text()
    section = text.partition("## Your own vectors")[2]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / "FOLDER").mkdir()
    monkeypatch.chdir(tmp_path)
    vectors, ids = np.eye(3), ["a", "b", "c"]
    names = {"np": np, "Path": Path, "vectors": vectors, "ids": ids}
    exec(compile(code, "content.md", "exec"), names)
    data = default_config().data
    data.raw_dir = "FOLDER"
    np.testing.assert_array_equal(own_vectors(ids, data).table[1:], vectors)
