"""A run whose interactions have events: trained, evaluated, asked in all ways, carried."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pytest
from etils import epath
from fastapi.testclient import TestClient

from tests.support.raw_data import tiny_config
from tssr_jax.errors import UserError
from tssr_jax.evaluation.ranking import rank
from tssr_jax.models.apply import encode, newest
from tssr_jax.recommending.export import _vectors, scores_program
from tssr_jax.recommending.forms import Form
from tssr_jax.recommending.histories import HistoryFile
from tssr_jax.recommending.recommend import Request, run_recommend
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.serving.app import create_app
from tssr_jax.training.loop import train

HISTORY, TIMES = ["i3", "i4", "i9"], [60.0, 120.0, 180.0]
EVENTS = ["view", "buy", "view"]


@pytest.fixture(name="workdir", scope="module")
def fixture_workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("events")
    config = tiny_config(folder)
    path = folder / "raw" / "interactions.csv"
    header, *lines = path.read_text().split()
    kinds = np.random.default_rng(0).choice(["buy", "buy", "view"], len(lines))
    rows = [f"{line},{kind}" for line, kind in zip(lines, kinds, strict=True)]
    path.write_text("\n".join([f"{header},event", *rows]) + "\n")
    config.data.target_events = ("buy",)
    config.model.update(memory=("co_occurrence", "words"), tie_orders=2)
    config.memory.neighbours = 6
    config.train.packing = True
    train(config, folder / "run")
    return folder / "run"


@pytest.fixture(name="recommender", scope="module")
def fixture_recommender(workdir):
    return Recommender.from_workdir(workdir, batch_size=8)


def ids(lists):
    return [[item.item for item in own.items] for own in lists]


def test_what_is_measured_is_what_is_recommended(workdir, recommender):
    run = recommender.run
    store, data = run.sequences, run.data
    users, ends = store.splits.targets["test"]
    with np.load(workdir / "per_user.npz") as arrays:
        ranks, answers = arrays["test_rank"], arrays["test_answer"]
    histories, times, events = [], [], []
    for user, end in zip(users, ends, strict=True):
        rows, own = store.rows(np.array([user])), (np.array([end]), int(end))
        histories.append([data.item_ids[i - 1] for i in rows.windows(*own).numpy()[0]])
        times.append((60.0 * rows.times(*own).numpy()[0]).tolist())
        events.append([data.events[i - 1] for i in rows.last("event", *own).numpy()[0]])
    assert 10 < len(users) <= 40 and {x for own in events for x in own} == {"buy", "view"}
    lists = ids(recommender.recommend(histories, 20, times=times, events=events))
    found = 0
    for own, place, answer in zip(lists, ranks, answers, strict=True):
        name = data.item_ids[answer - 1]
        assert (own.index(name) == place) if name in own else place < 0 or place >= len(own)
        found += name in own
    assert found > 10
    # Without events each item is what is predicted.
    bought = [["buy"] * len(own) for own in histories]
    assert recommender.recommend(histories, 20, times=times) == recommender.recommend(
        histories, 20, times=times, events=bought
    )
    assert lists != ids(recommender.recommend(histories, 20, times=times))


def written(folder, ending):
    """The history as a file."""
    path = folder / f"histories{ending}"
    if ending == ".jsonl":
        row = {"user": "u", "items": HISTORY, "times": TIMES, "events": EVENTS}
        path.write_text(json.dumps(row) + "\n")
    elif ending == "-lists.parquet":
        rows = {"user": ["u"], "items": [HISTORY], "times": [TIMES], "events": [EVENTS]}
        pl.DataFrame(rows).write_parquet(path)
    else:
        table = pl.DataFrame(
            {"user": ["u"] * 3, "item": HISTORY, "timestamp": TIMES, "event": EVENTS}
        )
        table.write_parquet(path) if ending == ".parquet" else table.write_csv(path)
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet", "-lists.parquet"])
def test_files(workdir, recommender, tmp_path, ending):
    path = written(tmp_path, ending)
    run_recommend(epath.Path(workdir), Request(path, tmp_path / "lists.csv", top_k=5))
    expected = ids(recommender.recommend([HISTORY], 5, times=[TIMES], events=[EVENTS]))
    assert pl.read_csv(tmp_path / "lists.csv")["item"].to_list() == expected[0]
    assert expected != ids(recommender.recommend([HISTORY], 5, times=[TIMES]))
    # A run without events does not read them.
    (history,) = HistoryFile(path)
    assert history.events is None and history.items == HISTORY


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("library", [pl.DataFrame, pd.DataFrame])
def test_data_frames(recommender, lists, library):
    if lists:
        frame = {"user": ["u"], "items": [HISTORY], "times": [TIMES], "events": [EVENTS]}
    else:
        order = [2, 0, 1]  # rows are put in the order of time, with their events
        frame = {"user": ["u"] * 3, "item": HISTORY, "timestamp": TIMES, "event": EVENTS}
        frame = {name: [values[i] for i in order] for name, values in frame.items()}
    found = recommender.recommend(library(frame), 5)
    expected = ids(recommender.recommend([HISTORY], 5, times=[TIMES], events=[EVENTS]))
    assert list(found["item"]) == expected[0]


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([["view", "buy"]], r"3 items has the events \['view', 'buy'\]"),
        ([["view", "buy", "sold"]], r"no event 'sold'; those of the run's data are view, buy"),
        (["buy"], "needs one for each"),
        ([], "1 histories, but events of 0"),
    ],
)
def test_events_that_make_no_sense(recommender, events, told):
    with pytest.raises(UserError, match=told):
        recommender.recommend([HISTORY], events=events)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"user": "u", "items": ["i1"], "events": ["view", "buy"]}, "not a name for each item"),
        ({"user": "u", "items": ["i1"], "events": [3]}, "not a name for each item"),
        ({"user": "u", "items": ["i1"], "events": [""]}, "'u' has an item with no event"),
        ({"user": "u", "items": ["i1"], "events": ["x"]}, "'u' has an item with the event 'x'"),
    ],
)
def test_files_that_make_no_sense(tmp_path, row, told):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=told):
        list(HistoryFile(path, Form(event="event", events=("view", "buy"))))


@pytest.mark.parametrize("history", [[], ["nothing"]])
def test_histories_without_a_known_item(recommender, history):
    (own,) = recommender.recommend([history], 5)
    assert own.popular and len(own.items) == 5


def test_the_service(recommender):
    with TestClient(create_app(recommender, "run", examples=True)) as client:
        assert client.get("/about").json()["events"] == ["view", "buy"]
        asked = {"histories": [HISTORY, ["i3"]], "times": [TIMES, None], "top_k": 5}
        told = client.post("/recommend", json=asked | {"events": [EVENTS, None]}).json()
        expected = recommender.recommend(
            [HISTORY, ["i3"]], 5, times=[TIMES, None], events=[EVENTS, None]
        )
        assert [[x["item"] for x in own["items"]] for own in told["results"]] == ids(expected)
        refused = client.post("/recommend", json=asked | {"events": [["sold"] * 3, None]})
        assert refused.status_code == 400 and "no event 'sold'" in refused.json()["detail"]
        example = client.get("/example?number=3").json()
        assert len(example["events"]) == len(example["history"])
        assert set(example["events"]) <= {"buy", "view"}


def test_ranks_read_events(recommender):
    model, (params, content, _) = recommender.model, recommender.tables
    classes = np.array([[recommender.items.class_of(item) for item in HISTORY]])
    lists = recommender.recommend([HISTORY], 20, times=[TIMES], events=[EVENTS])[0].items
    numbers = np.array([[1 + recommender.items.events.index(name) for name in EVENTS]])
    minutes = np.array([TIMES]).astype(np.int32) // 60
    for place in (0, 7):
        answer = np.array([recommender.items.class_of(lists[place].item)])
        found = rank(
            model, params, classes, answer, content, times=minutes, side={"events": numbers}
        )
        assert found.tolist() == [place]


def test_a_column_without_a_name_is_no_event(workdir, tmp_path):
    path = tmp_path / "histories.csv"
    path.write_text(",user,item\n0,u,i1\n1,u,i2\n")
    (history,) = HistoryFile(path)
    assert history.events is None and history.items == ["i1", "i2"]


def test_a_model_that_reads_no_events_says_so(recommender):
    other = dataclasses.replace(recommender.items, events=())
    with pytest.raises(UserError, match="This model reads no events"):
        other.require_events([HISTORY], [EVENTS])


def test_exported_programs_take_items_as_what_is_predicted(recommender):
    classes = jnp.array([[recommender.items.class_of(item) for item in HISTORY]])
    scores = scores_program(recommender)(recommender.tables, classes)[0]
    (own,) = recommender.recommend([HISTORY], 20)
    places = [recommender.items.class_of(item.item) for item in own.items]
    np.testing.assert_allclose(scores[np.array(places)], [x.score for x in own.items], rtol=1e-5)


def test_explanations_and_user_vectors_read_events(recommender):
    model, (params, content, _) = recommender.model, recommender.tables
    store, length = recommender.run.sequences, model.max_length
    rows, ends = store.rows(np.array([5])), store.lengths[5:6]
    columns = {
        name: rows.last(name, ends, length).numpy() for name in ("items", "minutes", "event")
    }
    batch = dict(zip(("item_sequence", "times", "events"), columns.values(), strict=True))
    expected = newest(model, params, batch, content).fused[0, -1]
    np.testing.assert_allclose(_vectors(recommender)["user_vectors"][5], expected, atol=1e-5)
    window = np.zeros((1, length), np.int32)
    window[0, -3:] = [recommender.items.class_of(item) for item in HISTORY]
    bought = np.where(window > 0, recommender.items.usual_number, 0)
    gate = encode(model, params, window, content, side={"events": bought}).gate
    told = recommender.explain(HISTORY)
    assert not np.array_equal(told.id_weight, recommender.explain(HISTORY, EVENTS).id_weight)
    np.testing.assert_allclose(told.id_weight, gate[0, -3:].mean(axis=-1), atol=1e-6)


def test_a_run_that_is_carried(workdir, recommender, tmp_path, monkeypatch):
    expected = recommender.recommend([HISTORY], 5, times=[TIMES], events=[EVENTS])
    there = tmp_path / "there"
    shutil.copytree(workdir, there)
    away = workdir.parent.with_name("away")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    workdir.parent.rename(away)
    try:
        other = Recommender.from_workdir(there, batch_size=8)
        assert other.items.events == ("view", "buy")
        assert other.recommend([HISTORY], 5, times=[TIMES], events=[EVENTS]) == expected
    finally:
        away.rename(workdir.parent)
