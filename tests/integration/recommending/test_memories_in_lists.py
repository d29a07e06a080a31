"""Models with memories behind lists: times, reasons, exports, new items."""

import jax.numpy as jnp
import numpy as np
import pytest
from fastapi.testclient import TestClient
from jax import export

from tests.support.with_memories import config_of, fixture_recommender, fixture_workdir
from tssr_jax.errors import UserError
from tssr_jax.evaluation.evaluate import restore_best
from tssr_jax.memory.scores import Neighbours
from tssr_jax.models.apply import score
from tssr_jax.models.content import Content
from tssr_jax.recommending.export import ExportRequest, run_export
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.serving.app import create_app
from tssr_jax.training.loop import train
from tssr_jax.training.progress import CLOCK

__all__ = ["fixture_recommender", "fixture_workdir"]


def test_times_that_do_not_fit(recommender):
    for times, message in (
        ([[1.7e12]], "not seconds since 1970"),
        ([[float("nan")]], "not seconds since 1970"),
        ([[1.0, 2.0]], "1 items has 2 times"),
        ([], "1 histories, but times of 0"),
    ):
        with pytest.raises(UserError, match=message):
            recommender.recommend([["i1"]], times=times)
    with pytest.raises(UserError, match=r"not ascending: 2\.0, 1\.0"):
        recommender.recommend([["i1", "i2"]], times=[[2.0, 1.0]])


def test_reasons_add_up(workdir, recommender):
    history, seconds = ["i3", "i9", "i4"], [60.0, 120.0, 120.0]
    other, reasons = recommender.because(history, ["i6", "i5"], seconds)
    assert (other,) == recommender.because(history, ["i6"], seconds) != (reasons,)
    assert {reason.memory for reason in reasons} <= {"co_occurrence", "words"}
    assert [r.score for r in reasons] == sorted((r.score for r in reasons), reverse=True)
    run, params, _ = restore_best(workdir)
    without = run.content.memories._replace(
        tables={
            name: Neighbours(table.classes, jnp.zeros_like(table.likeness))
            for name, table in run.content.memories.tables.items()
        }
    )
    place = run.data.item_ids.index("i5") + 1
    items = jnp.array([[run.data.item_ids.index(item) + 1 for item in history]])
    times = jnp.array([[1, 2, 2]])
    ours, network = (
        score(run.model, params, items, content, times)[0, place]
        for content in (
            run.content,
            Content(run.content.features, known=run.content.known, memories=without),
        )
    )
    # Popularity, which no item of the history is a reason for, adds to both.
    assert ours > network
    np.testing.assert_allclose(sum(r.score for r in reasons), ours - network, rtol=1e-4, atol=1e-6)
    assert recommender.because(["nothing"], ["i5"]) == ((),)
    with pytest.raises(UserError, match="not in the catalogue"):
        recommender.because(history, ["nothing"])


def test_the_service_tells_reasons(recommender):
    asked = {"history": ["i3", "i9", "i4"], "items": ["i6", "i5"], "times": [60.0, 120.0, 120.0]}
    expected = recommender.because(asked["history"], asked["items"], asked["times"])
    with TestClient(create_app(recommender, "runs/mine")) as client:
        told = client.post("/because", json=asked).json()["results"]
        refused = client.post("/because", json=asked | {"items": ["nothing"]})
    assert [[(x["item"], x["title"], x["memory"]) for x in own] for own in told] == [
        [(x.item, x.title, x.memory) for x in own] for own in expected
    ]
    assert told[1][0]["score"] == pytest.approx(expected[1][0].score)
    assert refused.status_code == 400 and "not in the catalogue" in refused.json()["detail"]


def test_after_warming_up_no_request_waits_for_a_compilation(workdir):
    recommender = Recommender.from_workdir(workdir, batch_size=64)
    recommender.warm_up()
    ids = recommender.items.ids
    compiled = CLOCK.seconds
    recommender.recommend([ids[:1]], top_k=200)
    recommender.recommend([list(ids)] * 3, top_k=2, times=[None, [60.0] * len(ids), None])
    recommender.recommend([["nothing"], *[[ids[i % len(ids)]] * 1000 for i in range(63)]])
    for stream in ("id", "content"):
        recommender.recommend([ids[:3]], top_k=7, stream=stream)
    recommender.explain(ids[:5])
    recommender.because(ids[:5], ids[3:], [60.0] * 5)
    recommender.similar_items(ids[2])
    assert CLOCK.seconds == compiled
    recommender.recommend([ids[:1]] * 65)  # two batches
    assert CLOCK.seconds == compiled
    recommender.recommend([["nothing"]], top_k=4, stream="id", keep_seen=True)
    recommender.recommend([ids[:1]] * 2, stream="id")
    assert CLOCK.seconds > compiled  # several histories by one stream


def test_exports_give_the_same_lists(workdir, recommender, tmp_path):
    run_export(workdir, ExportRequest(tmp_path / "exported", top_k=5))
    assert not (tmp_path / "exported" / "vectors.safetensors").exists()
    program = export.deserialize(
        bytearray((tmp_path / "exported" / "recommend.stablehlo").read_bytes())
    )
    history = ["i3", "i9", "i4"]
    ids = recommender.items.ids
    classes, values = program.call(np.array([[ids.index(item) + 1 for item in history]], np.int32))
    (own,) = recommender.recommend([history], top_k=5)
    assert [ids[c - 1] for c in np.asarray(classes)[0]] == [x.item for x in own.items]
    np.testing.assert_allclose(values[0], [x.score for x in own.items], rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="not dot products of vectors"):
        run_export(workdir, ExportRequest(tmp_path / "other", formats=("vectors",)))
    assert not (tmp_path / "other").exists()


def test_new_items_have_words_only(tmp_path):
    config = config_of(tmp_path, **{"model.head": "tied", "train.num_epochs": 1})
    train(config, tmp_path / "run")
    recommender = Recommender.from_workdir(tmp_path / "run", batch_size=8)
    titles = dict(zip(recommender.items.ids, recommender.items.titles, strict=True))
    (tmp_path / "new.csv").write_text(f"item,title\nn1,{titles['i4']}\n")
    more = Recommender.from_workdir(tmp_path / "run", new_items=tmp_path / "new.csv", batch_size=8)
    for history, item in (("i4", "n1"), ("n1", "i4")):
        assert {reason.memory for reason in more.because([history], [item])[0]} == {"words"}
    # It is like its twin's twins: whose texts are equal, likeness is equal.
    twin = "i14"
    assert titles[twin] == titles["i4"]
    old, new = (r.because(["i4"], [twin])[0] for r in (recommender, more))
    words = [[x.score for x in own if x.memory == "words"] for own in (old, new)]
    np.testing.assert_allclose(*words, rtol=1e-5)
