"""Lists by an index against exact ones."""

import json
import shutil

import httpx
import numpy as np
import pytest

from tests.support.raw_data import tiny_config
from tests.support.services import start
from tests.support.with_memories import config_of
from tssr_jax.errors import UserError
from tssr_jax.recommending import index
from tssr_jax.recommending.export import ExportRequest, run_export
from tssr_jax.recommending.index import IndexedRecommender
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.training.loop import train

pytest.importorskip("faiss")
HISTORIES = [["i3", "i4", "i5"], ["i9", "nothing"], ["i1"] * 12]


@pytest.fixture(name="workdir", scope="module", params=["gate", "experts"])
def fixture_workdir(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("index")
    config = tiny_config(folder)
    config.model.update(mixing=request.param, head="tied")
    train(config, folder / "run")
    return folder / "run"


@pytest.fixture(name="exported", scope="module")
def fixture_exported(workdir):
    output = workdir.parent / "exported"
    run_export(workdir, ExportRequest(output, ("index",)))
    return output


@pytest.fixture(name="both", scope="module")
def fixture_both(workdir, exported):
    exact = Recommender.from_workdir(workdir, batch_size=8)
    return exact, IndexedRecommender.from_workdir(workdir, batch_size=8).use(exported / "index")


def assert_equal_lists(one, other):
    for own, expected in zip(one, other, strict=True):
        assert [x.item for x in own.items] == [x.item for x in expected.items]
        scores = [[x.score for x in lists.items] for lists in (own, expected)]
        np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-5)
        assert own.unknown == expected.unknown and own.popular == expected.popular
        if expected.stream_weights:
            assert own.stream_weights == pytest.approx(expected.stream_weights, rel=1e-5)
        else:
            assert own.stream_weights is None


@pytest.mark.parametrize("keep_seen", [False, True])
@pytest.mark.parametrize("top_k", [1, 5, 20])
def test_lists_of_a_small_catalogue_are_exact(both, top_k, keep_seen):
    exact, indexed = both
    own, expected = (r.recommend(HISTORIES, top_k, keep_seen=keep_seen) for r in (indexed, exact))
    assert_equal_lists(own, expected)


def test_what_an_index_can_not_tell_is_exact(both, monkeypatch):
    exact, indexed = both
    monkeypatch.setattr(index, "search", None)
    for asked in ([["i3"], []], [["nothing"]]):
        assert indexed.recommend(asked, 5) == exact.recommend(asked, 5)
    assert indexed.recommend(HISTORIES, 5, stream="id") == exact.recommend(
        HISTORIES, 5, stream="id"
    )
    some = {"only": ["i2", "i7", "i8"], "never": ["i8"]}
    own, expected = (r.restricted(**some).recommend([["i3"]], 5) for r in (indexed, exact))
    assert own == expected and len(own[0].items) == 2


def test_recall_is_told(exported):
    about = json.loads((exported / "export.json").read_text())
    assert about["index"] == {"recall@10": 1.0, "recall@20": 1.0}


def test_recall_of_many_items():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(50, 16))
    vectors = centres[rng.integers(50, size=5_000)] + 0.5 * rng.normal(size=(5_000, 16))
    vectors = np.c_[vectors, rng.normal(size=5_000)].astype(np.float32)
    states = centres[rng.integers(50, size=40)] + 0.5 * rng.normal(size=(40, 16))
    built = index.build(vectors)
    found = index.recall(built, vectors, states)
    # By hand: all products, with the bias.
    scores = states @ vectors[:, :-1].T + vectors[:, -1]
    best = np.argsort(-scores, axis=1)[:, :10]
    values, numbers = index.search(built, states, 10)
    shared = np.mean([len({*a} & {*b}) for a, b in zip(best, numbers, strict=True)]) / 10
    assert found["recall@10"] == pytest.approx(shared) and shared > 0.95
    expected = np.take_along_axis(scores, numbers, axis=1)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_told(workdir, exported, tmp_path):
    other = IndexedRecommender.from_workdir(workdir, batch_size=8)
    with pytest.raises(UserError, match=r"has no index\.faiss\. Write one: tssr export"):
        other.use(tmp_path)
    shutil.copytree(exported / "index", tmp_path / "index")
    (tmp_path / "index" / "index.faiss").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"index\.faiss can't be read"):
        other.use(tmp_path / "index")
    about = tmp_path / "index" / "index.json"
    whole = about.read_text()
    for damaged in ("{", "[]", "{}"):
        about.write_text(damaged)
        with pytest.raises(UserError, match=r"index\.json can't be read"):
            other.use(tmp_path / "index")
    about.write_text(json.dumps({**json.loads(whole), "vectors": "0"}))
    with pytest.raises(UserError, match="is of another model, or of other items"):
        other.use(tmp_path / "index")


def test_memories_have_no_index(tmp_path):
    train(config_of(tmp_path), tmp_path / "run")
    with pytest.raises(UserError, match=r"dot products of vectors. This run has memories"):
        run_export(tmp_path / "run", ExportRequest(tmp_path / "out", ("index",)))
    assert not (tmp_path / "out").exists()


def test_the_service_finds_by_an_index(both, workdir, exported):
    process, address = start(workdir, f"--index={exported / 'index'}")
    try:
        asked = {"histories": HISTORIES, "top_k": 5}
        told = httpx.post(f"{address}/recommend", json=asked, timeout=60).json()["results"]
        assert httpx.get(f"{address}/about").json()["index"]
    finally:
        process.terminate()
        process.communicate(timeout=60)
    expected = both[0].recommend(HISTORIES, 5)
    assert [[x["item"] for x in own["items"]] for own in told] == [
        [x.item for x in own.items] for own in expected
    ]
