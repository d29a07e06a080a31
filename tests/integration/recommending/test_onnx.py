"""Exports for ONNX Runtime, read without JAX by the code of docs/guides/recommending.md."""

import importlib.util
import json
import os

import numpy as np
import polars as pl
import pytest

from tests.integration.recommending.test_export import HISTORIES, run_elsewhere
from tests.support.raw_data import take_again, tiny_config
from tssr_jax.errors import UserError
from tssr_jax.recommending import onnx_program
from tssr_jax.recommending.export import ExportRequest, run_export
from tssr_jax.recommending.onnx_program import require_onnx
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.training.loop import train

HAS_ONNX = importlib.util.find_spec("jax2onnx") is not None


@pytest.mark.skipif("TSSR_NEEDS_ONNX" not in os.environ, reason="only where CI installs it")
def test_the_packages_are_there():
    require_onnx()


@pytest.mark.skipif(HAS_ONNX, reason="the packages are there")
def test_missing_packages_are_named():
    with pytest.raises(UserError, match=r"pip install 'tssr-jax\[onnx\]'"):
        require_onnx()


def test_ids_alone_by_a_gru(tmp_path):
    check(tmp_path, streams=("id",), encoder="gru")


def test_two_streams_with_memories(tmp_path):
    memories = ("co_occurrence", "words", "popularity")
    check(tmp_path, memory=memories, id_neighbours=3, tie_orders=2, mixing="experts", head="tied")


def test_what_is_taken_again(tmp_path):
    memories = ("popularity", "repeats")
    check(tmp_path, keep_seen=True, again=True, memory=memories, head="tied")


def test_a_head_that_reads_content_and_seen_items(tmp_path):
    check(tmp_path, keep_seen=True, head="content")


def check(folder, *, keep_seen=False, again=False, **model):
    """Trains a step, exports, and compares lists of histories of several numbers and lengths."""
    if not HAS_ONNX:
        pytest.skip("jax2onnx is not installed")
    config = tiny_config(folder)
    config.model.update(model)
    config.evaluate.keep_seen = keep_seen
    if again:
        take_again(config)
    config.memory.neighbours = 6
    config.train.num_epochs = 1
    train(config, folder / "run")
    run_export(folder / "run", ExportRequest(folder / "exported", ["onnx"], top_k=7))
    assert {path.name for path in (folder / "exported").iterdir()} == {
        "recommend.onnx", "items.parquet", "export.json"
    }  # fmt: skip
    recommender = Recommender.from_workdir(folder / "run")
    known = [recommender.items.known(history)[0] for history in HISTORIES]
    rows = [[known], [[own] for own in known]]  # together, and one by one
    more = f"""
assert "jax" not in sys.modules and "tensorflow" not in sys.modules
found = []
for batch in {[batch for some in rows for batch in some]!r}:
    width = max(1, *map(len, batch))
    padded = [[0] * (width - len(own)) + own for own in batch]
    classes, scores = session.run(None, {{"history": np.array(padded, np.int32)}})
    found.append([classes.tolist(), np.nan_to_num(scores).tolist()])
print(json.dumps(found))
"""
    found = run_elsewhere(folder / "exported", "onnx", more)
    assert len(found) == 1 + len(HISTORIES)
    lists = recommender.recommend(HISTORIES, top_k=7)
    alone = [pair for batch in found[1:] for pair in zip(*batch, strict=True)]
    for pairs in (zip(*found[0], strict=True), alone):
        for (classes, scores), own in zip(pairs, lists, strict=True):
            ids = [recommender.items.ids[place - 1] for place in classes if place]
            assert ids == [x.item for x in own.items]
            np.testing.assert_allclose(
                scores[: len(ids)], [x.score for x in own.items], rtol=1e-4, atol=1e-6
            )


def test_a_model_in_bfloat16_is_refused():
    with pytest.raises(UserError, match="computes in bfloat16"):
        require_onnx("bfloat16")


def test_large_tables_stand_beside_the_program(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_program, "_MOST_INSIDE", 0)
    if not HAS_ONNX:
        pytest.skip("jax2onnx is not installed")
    config = tiny_config(tmp_path)
    config.train.num_epochs = 0
    train(config, tmp_path / "run")
    run_export(tmp_path / "run", ExportRequest(tmp_path / "exported", ["onnx"], top_k=3))
    assert (tmp_path / "exported" / "recommend.onnx.data").stat().st_size > 1_000
    found = run_elsewhere(tmp_path / "exported", "onnx", "print(json.dumps(classes.tolist()))")
    ids = pl.read_parquet(tmp_path / "exported" / "items.parquet")["item"]
    (own,) = Recommender.from_workdir(tmp_path / "run").recommend([["i3", "i4", "i5"]], 3)
    assert [ids[place - 1] for place in found[0]] == [x.item for x in own.items]
    assert json.loads((tmp_path / "exported" / "export.json").read_text())["formats"] == ["onnx"]
