"""Exports, read by processes without this package, by the code of docs/guides/recommending.md."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from jax import export
from safetensors.numpy import load_file

from tests.support.raw_data import tiny_config
from tests.support.runs import ROOT
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.errors import UserError
from tssr_jax.recommending.export import ExportRequest, run_export
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.training.loop import train

HISTORIES = [["i3", "i4", "i5"], [], [f"i{i}" for i in range(15)], ["nothing", "i9"]]
# Fails where the package could be imported; then runs the code and what the test adds to it.
PROGRAM = """
import json, sys
class NoPackage:
    def find_spec(self, name, *_):
        assert name.split(".")[0] not in ("tssr_jax", "tssr_jax.data_pipeline"), name
sys.meta_path.insert(0, NoPackage())
{code}
{more}
"""


@pytest.fixture(name="exported", scope="module")
def fixture_exported(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "exported"
    run_export(workdir, ExportRequest(folder, top_k=7, platforms=("cpu", "cuda", "tpu")))
    return folder


def run_elsewhere(exported, name, more):
    """What the documented code and `more` print as their last line, as JSON."""
    text = (ROOT / "docs" / "guides" / "recommending.md").read_text()
    (code,) = re.findall(rf"```python title=\"{name}\"\n(.*?)```", text, re.DOTALL)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(code=code, more=more)],
        cwd=exported.parent, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_saved_model_gives_the_same_lists(exported, recommender):
    width = max(map(len, HISTORIES))
    padded = [[*history, *[""] * (width - len(history))] for history in HISTORIES]
    more = f"""
assert model(items=tf.constant([[], []], tf.string))["items"].shape == (2, 7)
found = model(items=tf.constant({padded!r}))
lists = [[x.decode() for x in row] for row in found["items"].numpy()]
titles = [[x.decode() for x in row] for row in found["titles"].numpy()]
print(json.dumps([lists, titles, found["scores"].numpy().tolist()]))
"""
    lists, titles, scores = run_elsewhere(exported, "saved_model", more)
    expected = recommender.recommend(HISTORIES, top_k=7)
    for i, own in enumerate(expected):
        assert lists[i][: len(own.items)] == [x.item for x in own.items]
        assert titles[i][: len(own.items)] == [x.title for x in own.items]
        np.testing.assert_allclose(
            scores[i][: len(own.items)], [x.score for x in own.items], rtol=1e-4
        )
        assert lists[i][len(own.items) :] == [""] * (7 - len(own.items))
    assert len(expected[2].items) == 5  # 15 of 20 are seen


def test_a_program_gives_the_same_lists(exported, recommender):
    known = [recommender.items.known(history)[0] for history in HISTORIES]
    width = max(map(len, known))
    padded = [[*[0] * (width - len(history)), *history] for history in known]
    more = f"""
assert set(program.platforms) == {{"cpu", "cuda", "tpu"}}
classes, scores = program.call(np.array({padded!r}, np.int32))
print(json.dumps([classes.tolist(), np.nan_to_num(np.asarray(scores)).tolist()]))
"""
    classes, scores = run_elsewhere(exported, "stablehlo", more)
    for i, own in enumerate(recommender.recommend(HISTORIES, top_k=7)):
        ids = [recommender.items.ids[place - 1] for place in classes[i] if place]
        assert ids == [x.item for x in own.items]
        np.testing.assert_allclose(
            scores[i][: len(ids)], [x.score for x in own.items], rtol=1e-4, atol=1e-6
        )


def test_vectors_give_the_same_lists(exported, recommender):
    ids = run_elsewhere(
        exported, "vectors", 'print(json.dumps(ids[np.argsort(-scores, kind="stable")].tolist()))'
    )
    data, store = recommender.run.users()
    user = np.array([data.user_ids.index("u7")])
    whole = store.rows(user).windows(store.lengths[user], int(store.lengths[user][0])).numpy()[0]
    history = [data.item_ids[place - 1] for place in whole]
    (own,) = recommender.recommend([history], top_k=20, keep_seen=True)
    assert ids == [x.item for x in own.items]


def test_what_a_class_is(exported, recommender):
    table = pl.read_parquet(exported / "items.parquet")
    assert table["item"].to_list() == list(recommender.items.ids)
    assert table["title"].to_list() == list(recommender.items.titles)
    assert table["class"].to_list() == list(range(1, 21))
    assert table["times_seen"].to_list() == recommender.items.counts[1:].tolist()
    about = json.loads((exported / "export.json").read_text())
    assert about["top_k"] == 7 and about["formats"] == ["saved_model", "stablehlo", "vectors"]


def test_an_export_replaces_an_export_that_it_covers(exported, workdir, tmp_path):
    request = ExportRequest(exported, formats=("vectors",), top_k=3)
    (tmp_path / "other").mkdir()
    for wrong, message in (
        (request._replace(output=tmp_path / "other"), "is there and no export"),
        (request._replace(formats=("pickle",)), "--formats is pickle; known: saved_model"),
        (request._replace(platforms=("cpu", "gpu")), "--platforms is cpu, gpu; known: cpu"),
        (request._replace(top_k=0), "top_k is 0; it must be at least 1"),
        (request, "is an export that also has recommend.stablehlo, saved_model, which would be"),
        (request._replace(output=Path(workdir).parent), "holds the run in .*: name another folder"),
    ):
        with pytest.raises(UserError, match=message):
            run_export(workdir, wrong)
    assert (exported / "saved_model").is_dir()
    shutil.rmtree(exported / "saved_model")
    (exported / "recommend.stablehlo").unlink()
    run_export(workdir, request)
    names = {"export.json", "items.parquet", "users.parquet", "vectors.safetensors"}
    assert {path.name for path in exported.iterdir()} == names
    assert [path.name for path in exported.parent.iterdir()] == ["exported"]


@pytest.mark.parametrize(
    "fields",
    [
        {"model.mixing": "experts", "model.head": "tied", "model.id_reads_content": True},
        {"model.streams": ("sum",), "model.head": "tied"},
    ],
    ids=str,
)
def test_other_models_give_the_same_lists(tmp_path, fields):
    config = tiny_config(tmp_path)
    config.update_from_flattened_dict(fields)
    config.train.num_epochs = 1
    train(config, tmp_path / "run")
    folder = tmp_path / "exported"
    run_export(tmp_path / "run", ExportRequest(folder, top_k=5))
    recommender = Recommender.from_workdir(tmp_path / "run", batch_size=8)
    ids = recommender.items.ids
    (own,) = recommender.recommend([HISTORIES[0]], top_k=5)
    names, scores = [item.item for item in own.items], [item.score for item in own.items]

    call = tf.saved_model.load(str(folder / "saved_model")).signatures["serving_default"]
    found = call(items=tf.constant([HISTORIES[0]]))
    assert [name.decode() for name in found["items"].numpy()[0]] == names
    np.testing.assert_allclose(found["scores"].numpy()[0], scores, rtol=1e-4, atol=1e-6)

    program = export.deserialize(bytearray((folder / "recommend.stablehlo").read_bytes()))
    classes, values = program.call(
        np.array([[ids.index(item) + 1 for item in HISTORIES[0]]], np.int32)
    )
    assert [ids[c - 1] for c in np.asarray(classes)[0]] == names
    np.testing.assert_allclose(values[0], scores, rtol=1e-4, atol=1e-6)

    tables = load_file(folder / "vectors.safetensors")
    data, store = recommender.run.users()
    whole = store.rows(np.array([7])).windows(store.lengths[7:8], int(store.lengths[7])).numpy()[0]
    asked = [data.item_ids[c - 1] for c in whole]
    (own,) = recommender.recommend([asked], top_k=20, keep_seen=True)
    products = tables["item_vectors"] @ tables["user_vectors"][7] + tables["item_biases"]
    expected = {item.item: item.score for item in own.items}
    np.testing.assert_allclose(products, [expected[item] for item in ids], rtol=1e-4, atol=1e-5)
