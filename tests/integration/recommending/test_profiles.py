"""A run that reads fields of users: trained, asked in all ways, carried, gone on from."""

import json
import shutil

import numpy as np
import pandas as pd
import polars as pl
import pytest
from etils import epath
from fastapi.testclient import TestClient

import tssr_jax
from tests.support.raw_data import tiny_config
from tssr_jax.config.saved import load_config
from tssr_jax.data_pipeline.profiles import values_of
from tssr_jax.errors import UserError
from tssr_jax.models.apply import newest
from tssr_jax.recommending.export import _vectors
from tssr_jax.recommending.histories import HistoryFile
from tssr_jax.recommending.recommend import Request, run_recommend
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.serving.app import create_app
from tssr_jax.training.loop import train

HISTORY, TIMES = ["i3", "i4", "i9"], [60.0, 120.0, 180.0]
PROFILE = {"side": "left", "age": "30"}


def write_users(folder):
    """Users on the left take one item more than the others; nothing else tells them apart."""
    rng, path = np.random.default_rng(0), folder / "interactions.csv"
    rows, users = ["user,item,timestamp"], ["user,side,age"]
    for user in range(60):
        left = user % 2
        taken = rng.choice(18, 8, replace=False)
        places = [18 + left if turn == 4 else item for turn, item in enumerate(taken)]
        rows += [f"u{user},i{item},{1000 + 60 * turn}" for turn, item in enumerate(places)]
        users.append(f"u{user},{'left' if left else 'right'},{30 if user % 3 else ''}")
    path.write_text("\n".join(rows) + "\n")
    (folder / "users.csv").write_text("\n".join(users) + "\n")


@pytest.fixture(name="workdir", scope="module")
def fixture_workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiles")
    config = tiny_config(folder)
    write_users(folder / "raw")
    config.data.update(user_fields=("side", "age"), min_item_interactions=1)
    config.model.update(memory=("co_occurrence", "words"), tie_orders=2, dropout_rate=0.0)
    config.memory.neighbours = 6
    config.train.update(packing=True, num_epochs=12)
    train(config, folder / "run")
    return folder / "run"


@pytest.fixture(name="recommender", scope="module")
def fixture_recommender(workdir):
    return Recommender.from_workdir(workdir, batch_size=8)


def ids(lists):
    return [[item.item for item in own.items] for own in lists]


def answers_of(recommender):
    """Histories before the test answers, their times and users' profiles, and the answers."""
    run, found = recommender.run, []
    store, data = run.sequences, run.users().data
    for user, end in zip(*store.splits.targets["test"], strict=True):
        rows, own = store.rows(np.array([user])), (np.array([end]), int(end))
        items = [data.item_ids[i - 1] for i in rows.windows(*own).numpy()[0]]
        times = (60.0 * rows.times(*own).numpy()[0]).tolist()
        profile = values_of(int(data.profiles[user]), data.profile_fields)
        answer = rows.windows(np.array([end + 1]), 1).numpy()[0, 0]
        found.append((items, times, profile, data.item_ids[answer - 1]))
    return map(list, zip(*found, strict=True))


def test_what_is_measured_is_what_is_recommended(workdir, recommender):
    histories, times, profiles, answers = answers_of(recommender)
    with np.load(workdir / "per_user.npz") as arrays:
        ranks = arrays["test_rank"]
    lists = ids(recommender.recommend(histories, 20, times=times, profiles=profiles))
    assert len(ranks) == 60
    for own, place, answer in zip(lists, ranks, answers, strict=True):
        assert (own.index(answer) == place) if answer in own else place < 0 or place >= len(own)
    nothing = recommender.recommend(histories, 20, times=times)
    assert lists != ids(nothing)
    told = [{"side": "above", "age": None}] * len(histories)  # a value that nobody had
    assert recommender.recommend(histories, 20, times=times, profiles=told) == nothing


def test_what_depends_on_the_user_is_learnt(recommender):
    """Of two items, one is only taken by users on the left, and the other only by others."""
    histories = [["i1", "i2", "i3", "i4"], ["i11", "i5", "i14", "i0"], ["i7", "i10", "i2", "i9"]]
    leads = {}
    for side in ("left", "right"):
        lists = recommender.recommend(histories, 20, profiles=[{"side": side}] * 3)
        scores = [{x.item: x.score for x in found.items} for found in lists]
        leads[side] = np.array([own["i19"] - own["i18"] for own in scores])
    assert (leads["left"] > leads["right"] + 0.5).all()


def written(folder, ending):
    """The history as a file."""
    path = folder / f"histories{ending}"
    if ending == ".jsonl":
        row = {"user": "u", "items": HISTORY, "times": TIMES, "profile": PROFILE}
        path.write_text(json.dumps(row) + "\n")
    elif ending == "-lists.parquet":
        rows = {"user": ["u"], "items": [HISTORY], "times": [TIMES], "side": ["left"], "age": [30]}
        pl.DataFrame(rows).write_parquet(path)
    else:
        rows = {"user": ["u"] * 3, "item": HISTORY, "timestamp": TIMES}
        table = pl.DataFrame({**rows, "side": ["left", None, "right"], "age": [30, 30, 30]})
        table.write_parquet(path) if ending == ".parquet" else table.write_csv(path)
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet", "-lists.parquet"])
def test_files(workdir, recommender, tmp_path, ending):
    path = written(tmp_path, ending)
    run_recommend(epath.Path(workdir), Request(path, tmp_path / "lists.csv", top_k=5))
    expected = recommender.recommend([HISTORY], 5, times=[TIMES], profiles=[PROFILE])
    found = pl.read_csv(tmp_path / "lists.csv")
    assert found["item"].to_list() == ids(expected)[0]
    np.testing.assert_allclose(found["score"], [x.score for x in expected[0].items], rtol=1e-4)
    (history,) = HistoryFile(path)  # a run without fields does not read them
    assert history.profile is None and history.items == HISTORY


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("library", [pl.DataFrame, pd.DataFrame])
def test_data_frames(recommender, lists, library):
    if lists:
        frame = {"user": ["u"], "items": [HISTORY], "times": [TIMES], "side": ["left"], "age": [30]}
    else:
        frame = {"user": ["u"] * 3, "item": HISTORY, "timestamp": TIMES}
        frame |= {"side": ["left"] * 3, "age": [30.0, 30.0, None]}
    found = recommender.recommend(library(frame), 5)
    expected = recommender.recommend([HISTORY], 5, times=[TIMES], profiles=[PROFILE])
    np.testing.assert_allclose(found["score"], [x.score for x in expected[0].items], rtol=1e-4)


@pytest.mark.parametrize(
    ("profiles", "told"),
    [
        ([{"size": "L"}], r"'size' is no field of users that this run reads; .* side, age"),
        ([], "1 histories, but profiles of 0"),
        (["left"], "'left' is no profile: it must be values by fields"),
        ([{"age": [30]}], r"\[30\] is no value of a field"),
    ],
)
def test_profiles_that_make_no_sense(recommender, profiles, told):
    with pytest.raises(UserError, match=told):
        recommender.recommend([HISTORY], profiles=profiles)


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ("left", "not values by fields"),
        ({"size": "L"}, "'profile' has 'size'; the run reads side, age"),
        ({"age": [30]}, "is no value of a field"),
    ],
)
def test_a_file_that_makes_no_sense(workdir, tmp_path, profile, told):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"items": ["i1"], "profile": profile}) + "\n")
    with pytest.raises(UserError, match=f"line 1 is no history .*{told}"):
        run_recommend(epath.Path(workdir), Request(path, tmp_path / "lists.csv"))


@pytest.mark.parametrize("age", ["30", 30, 30.0, np.int64(30), " 30 ", "30.0"], ids=repr)
def test_a_value_is_the_same_in_all_spellings(recommender, age):
    expected = recommender.recommend([HISTORY], 5, profiles=[PROFILE])
    assert recommender.recommend([HISTORY], 5, profiles=[PROFILE | {"age": age}]) == expected


def test_of_a_users_rows_the_first_with_a_value_counts(recommender):
    """In their order, not in that of their times."""
    frame = pl.DataFrame({
        "user": ["u"] * 3, "item": HISTORY[::-1], "timestamp": TIMES[::-1],
        "side": [None, "left", "right"], "age": [None, 30, 40],
    })  # fmt: skip
    expected = recommender.recommend([HISTORY], 5, times=[TIMES], profiles=[PROFILE])
    found = recommender.recommend(frame, 5)["score"]
    np.testing.assert_allclose(found, [x.score for x in expected[0].items], rtol=1e-4)


def test_the_service(recommender):
    with TestClient(create_app(recommender, "run", examples=True)) as client:
        fields = client.get("/about").json()["fields"]
        assert fields == {"side": ["left", "right"], "age": ["30"]}
        asked = {"histories": [HISTORY, ["i3"]], "top_k": 5}
        numbers = PROFILE | {"age": 30}
        told = client.post("/recommend", json=asked | {"profiles": [numbers, None]}).json()
        expected = recommender.recommend([HISTORY, ["i3"]], 5, profiles=[PROFILE, None])
        found = [[x["score"] for x in own["items"]] for own in told["results"]]
        np.testing.assert_allclose(found, [[x.score for x in own.items] for own in expected])
        refused = client.post("/recommend", json=asked | {"profiles": [{"size": "L"}, None]})
        assert refused.status_code == 400 and "no field of users" in refused.json()["detail"]
        example = client.get("/example?number=3").json()
        data = recommender.run.users().data
        assert example["profile"] == values_of(int(data.profiles[3]), data.profile_fields)
        for profile in (None, PROFILE):
            told = client.post("/explain", json={"history": HISTORY, "profile": profile}).json()
            expected = recommender.explain(HISTORY, profile=profile).id_weight
            np.testing.assert_allclose([x["id_weight"] for x in told["items"]], expected)


def test_vectors_of_users_read_them(recommender):
    model, (params, content, _) = recommender.model, recommender.tables
    store, length = recommender.run.sequences, model.max_length
    rows, ends = store.rows(np.array([5])), store.lengths[5:6]
    columns = [rows.last(name, ends, length).numpy() for name in ("items", "minutes", "profile")]
    batch = dict(zip(("item_sequence", "times", "profiles"), columns, strict=True))
    expected = newest(model, params, batch, content).fused[0, -1]
    np.testing.assert_allclose(_vectors(recommender)["user_vectors"][5], expected, atol=1e-5)


@pytest.mark.parametrize("sequences", [False, True])
def test_a_run_that_is_carried(workdir, recommender, tmp_path, monkeypatch, sequences):
    expected = recommender.recommend([HISTORY], 5, times=[TIMES], profiles=[PROFILE])
    codes = recommender.run.users().data.profiles
    recommender.save(tmp_path / "there", sequences=sequences)
    away = workdir.parent.with_name("away")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    workdir.parent.rename(away)
    try:
        other = Recommender.load(tmp_path / "there", batch_size=8)
        assert other.recommend([HISTORY], 5, times=[TIMES], profiles=[PROFILE]) == expected
        assert other.run.has_users() == sequences
        if sequences:
            np.testing.assert_array_equal(other.run.users().data.profiles, codes)
    finally:
        away.rename(workdir.parent)


def test_a_warm_start_finds_values_by_name(workdir, tmp_path):
    """The new users' file names sides in another order, and has an age that is new."""
    raw = tmp_path / "raw"
    shutil.copytree(workdir.parent / "raw", raw)
    header, *lines = (raw / "users.csv").read_text().split()
    lines = [
        line.replace(",left", ",right") if 40 <= i < 50 else line for i, line in enumerate(lines)
    ]
    lines = [line + "40" if line.endswith(",") else line for line in lines]
    (raw / "users.csv").write_text("\n".join([header, *lines]) + "\n")
    old = Recommender.from_workdir(workdir)
    config = load_config(workdir)
    config.data.raw_dir = str(raw)
    config.train.update(warm_start=str(workdir), num_epochs=0)
    train(config, tmp_path / "run")
    new = Recommender.from_workdir(tmp_path / "run")
    assert list(old.items.profile_fields["side"]) == ["left", "right"]
    assert list(new.items.profile_fields["side"]) == ["right", "left"]
    before, after = (
        np.asarray(own.tables[0]["profile_embedding"]["embedding"]) for own in (old, new)
    )
    # Rows: no side, two sides; no age, 30, and now 40.
    np.testing.assert_array_equal(after[[0, 2, 1, 3, 4]], before)
    np.testing.assert_allclose(after[5], before[4:].mean(axis=0), atol=1e-7)
    config.data.user_fields = ("side",)
    with pytest.raises(UserError, match=r"user_fields is \('side', 'age'\) there, and \('side',\)"):
        train(config, tmp_path / "other")


def test_fit_reads_a_frame_of_users(tmp_path):
    config = tiny_config(tmp_path)
    write_users(tmp_path / "raw")
    frames = [
        pl.read_csv(tmp_path / "raw" / f"{n}.csv") for n in ("interactions", "items", "users")
    ]
    settings = {
        "data": {"cache_dir": config.data.cache_dir, "min_item_interactions": 1},
        "model": {"streams": ("id",), "memory": (), "id_neighbours": 0, "d_model": 8},
        "train": {"num_epochs": 1},
    }
    fitted = tssr_jax.fit(*frames[:2], users=frames[2], **settings)
    assert list(fitted.items.profile_fields) == ["side", "age"]
    assert fitted.items.profile_fields["age"] == ["30"]
