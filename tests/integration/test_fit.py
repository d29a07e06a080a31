"""DataFrames in, a recommender out: `tssr_jax.fit`."""

import gc
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml
from etils import epath
from polars.testing import assert_frame_equal

from tests.support.raw_data import write_csv, write_text_model
from tests.support.runs import ROOT
from tssr_jax import Recommender, fit
from tssr_jax.errors import UserError
from tssr_jax.evaluation.run_metrics import read_metrics


@pytest.fixture(name="frames", scope="module")
def fixture_frames(tmp_path_factory):
    folder = write_csv(tmp_path_factory.mktemp("raw"))
    return pl.read_csv(folder / "interactions.csv"), pl.read_csv(folder / "items.csv")


@pytest.fixture(name="small", scope="module")
def fixture_small(tmp_path_factory):
    """Settings that train in seconds."""
    folder = tmp_path_factory.mktemp("small")
    return {
        "data": {"cache_dir": str(folder / "cache")},
        "content": {
            "text": {"model_dir": str(write_text_model(folder / "model")), "max_tokens": 8}
        },
        "model": {"d_model": 16, "d_ffn": 16, "num_heads": 2, "max_length": 8},
        "train": {"num_epochs": 2, "batch_size": 16},
        "evaluate": {"list_length": 0},
        "num_devices": 1,
    }


@pytest.fixture(name="fitted", scope="module")
def fixture_fitted(frames, small, tmp_path_factory):
    return fit(*frames, workdir=tmp_path_factory.mktemp("runs") / "run", **small)


def test_metrics_are_those_of_the_files(fitted):
    metrics, folder = fitted.metrics, Path(fitted.workdir)
    assert metrics.test == json.loads((folder / "test_metrics.json").read_text())
    assert metrics.validation == json.loads((folder / "validation_metrics.json").read_text())
    assert metrics.test["num_users"] == 40
    assert metrics.epochs["epoch"].to_list() == [1.0, 2.0]
    assert {"train/total", "validation/ndcg@10"} <= set(metrics.epochs.columns)
    best = metrics.epochs["validation/ndcg@10"].max()
    assert metrics.validation["ndcg@10"] == pytest.approx(best)
    assert f"{metrics.test['ndcg@10']:.4f}" in str(metrics)


def test_a_damaged_line_of_metrics_is_told_but_for_the_last(fitted, tmp_path):
    whole = (Path(fitted.workdir) / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(whole + whole[:20])
    assert_frame_equal(read_metrics(epath.Path(tmp_path)).epochs, fitted.metrics.epochs)
    (tmp_path / "metrics.jsonl").write_text(whole[:20] + "\n" + whole)
    with pytest.raises(UserError, match=r"metrics.jsonl, line 1 is damaged"):
        read_metrics(epath.Path(tmp_path))


def histories_of(frame):
    """By hand: each user's items by time, users as they come first."""
    ordered = frame.sort("timestamp", maintain_order=True)
    users = frame["user"].unique(maintain_order=True).to_list()
    own = {user: ordered.filter(pl.col("user") == user) for user in users}
    return users, [own[u]["item"].to_list() for u in users], [own[u]["timestamp"] for u in users]


@pytest.mark.parametrize("library", ["polars", "pandas", "pyarrow"])
def test_lists_of_a_frame_are_those_of_its_histories(fitted, frames, library):
    rows = frames[0]
    users, histories, times = histories_of(rows)
    frame = {"polars": rows, "pandas": rows.to_pandas(), "pyarrow": rows.to_arrow()}[library]
    found = fitted.recommend(frame, top_k=3)
    assert type(found) is type(frame)
    found = pl.DataFrame(found)
    expected = fitted.recommend(histories, 3, times=[at.to_list() for at in times])
    pairs = zip(users, expected, strict=True)
    assert found["user"].to_list() == [user for user, own in pairs for _ in own.items]
    assert found["item"].to_list() == [x.item for r in expected for x in r.items]
    np.testing.assert_allclose(found["score"], [x.score for r in expected for x in r.items])
    assert found["rank"].head(3).to_list() == [1, 2, 3]


def test_a_frame_without_times_keeps_the_order_of_rows(fitted):
    frame = pl.DataFrame({"user": ["b", "a", "b"], "item": ["i1", "i7", "i2"]})
    found = fitted.recommend(frame, top_k=1)
    expected = fitted.recommend([["i1", "i2"], ["i7"]], top_k=1)
    assert found["user"].to_list() == ["b", "a"]
    assert found["item"].to_list() == [r.items[0].item for r in expected]
    lists = pl.DataFrame({"user": ["b", "a"], "items": [["i1", "i2"], ["i7"]]})
    assert_frame_equal(fitted.recommend(lists, top_k=1), found)


def test_saved_and_loaded(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    other = Recommender.load(tmp_path / "model")
    assert other.recommend([["i1", "i2"]]) == fitted.recommend([["i1", "i2"]])
    assert other.metrics.test == fitted.metrics.test
    assert_frame_equal(other.metrics.epochs, fitted.metrics.epochs)
    with pytest.raises(UserError, match="exists: name a new folder"):
        fitted.save(tmp_path / "model")


def test_the_card_of_a_saved_model(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    about = yaml.safe_load(front)
    test, simple = fitted.metrics.test, fitted.metrics.simple
    (measured,) = about["model-index"][0]["results"]
    assert {m["type"]: m["value"] for m in measured["metrics"]} == {
        name: round(test[name], 4)
        for name in ("ndcg@10", "recall@10", "ndcg@20", "recall@20", "mrr")
    }  # fmt: skip
    assert "40 users, 20 items, 393 interactions, 1970-01-01 to 1970-01-01" in text
    knn = simple["item-kNN"]["ndcg@10"]
    assert f"| {test['ndcg@10']:.4f} | " in text and f" | {knn:.4f} |" in text
    assert "popularity, test" in text and "40 test targets" in text


def test_a_repository_of_the_hub_is_fetched(fitted, tmp_path, monkeypatch):
    fitted.save(tmp_path / "model")
    fetch = {"someone/model": tmp_path / "model"}.__getitem__
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    other = Recommender.from_pretrained("someone/model")
    assert other.recommend([["i1"]]) == fitted.recommend([["i1"]])
    with pytest.raises(UserError, match="someone/other is no folder, and can't be fetched"):
        Recommender.from_pretrained("someone/other")


def test_the_same_call_goes_on(fitted, frames, small, capsys):
    again = fit(*frames, workdir=fitted.workdir, **small)
    assert "Resuming at step" in capsys.readouterr().out
    assert again.metrics.test == fitted.metrics.test
    with pytest.raises(UserError, match="holds a run on other data"):
        fit(frames[0].head(300), frames[1], workdir=fitted.workdir, **small)
    assert again.recommend([["i1"]]) == fitted.recommend([["i1"]])


def test_pandas_with_dates_and_numbers_as_ids(frames, small, fitted):
    """The same data, otherwise written, in a temporary folder that goes with the recommender."""
    interactions, items = (frame.to_pandas() for frame in frames)
    for frame in (interactions, items):
        frame["item"] = frame["item"].str.removeprefix("i").astype(int)
    interactions["timestamp"] = pd.to_datetime(interactions["timestamp"], unit="s")
    interactions["user"] = interactions["user"].astype("category")
    recommender = fit(interactions, items, **small)
    (found,) = recommender.recommend([[1, 2]], top_k=3)
    assert all(item.item.isdigit() for item in found.items)
    assert recommender.metrics.test["num_users"] == 40
    folder = Path(recommender.workdir)
    smaller = recommender.restricted(never=["1"])
    del recommender
    assert folder.exists() and smaller.metrics.test
    del smaller
    gc.collect()  # a thread of another library may have held a part until now
    assert not folder.exists()


def test_ids_alone(frames, small, tmp_path):
    settings = {name: value for name, value in small.items() if name != "content"}
    recommender = fit(frames[0], workdir=tmp_path / "run", **settings)
    assert recommender.model.streams == ("id",)
    assert recommender.model.memory == ("co_occurrence", "popularity")
    (found,) = recommender.recommend([["i1", "i2"]], top_k=3)
    assert len(found.items) == 3


def test_titles_are_words_of_a_model_of_ids(frames, small):
    """As `--config=csv:FOLDER --config.model.streams="('id',)"` has it."""
    settings = small | {"model": small["model"] | {"streams": ("id",)}}
    recommender = fit(*frames, **settings)
    assert recommender.model.memory == ("co_occurrence", "words", "popularity")
    assert recommender.run.config.model.id_neighbours > 0


@pytest.mark.parametrize("titles", [True, False])
def test_vectors_beside_titles_and_alone(frames, small, titles):
    items = frames[1].with_columns(vector=pl.Series(np.eye(len(frames[1])).tolist()))
    recommender = fit(frames[0], items if titles else items.drop("title"), **small)
    assert recommender.model.modalities == (("text", "vectors") if titles else ("vectors",))
    assert ("words" in recommender.model.memory) == titles
    assert bool(recommender.run.config.model.id_neighbours) == titles
    assert recommender.metrics.test["ndcg@10"] > 0


def test_numbers_of_numpy_are_numbers(frames, small, tmp_path):
    settings = small | {"seed": np.int64(3), "train": {"num_epochs": np.int32(1)}}
    assert fit(*frames, workdir=tmp_path / "run", **settings).run.config.seed == 3


@pytest.mark.parametrize(
    "case",
    [
        (
            lambda x, y: (x.drop("timestamp"), y),
            {},
            "^The DataFrame of interactions has no column 'timestamp'.* or set data.user_column",
        ),
        (
            lambda x, y: (x.with_columns(user=2.0**53 + pl.int_range(pl.len())), y),
            {},
            "'user' holds 9007199254740992 as a float. .* Write ids as strings",
        ),
        (
            lambda x, y: (x.to_pandas().assign(note=[1, *"a" * (x.height - 1)]), y),
            {},
            "DataFrame of interactions: column 'note' can't be read",
        ),
        (lambda x, y: (x, y.drop("title")), {}, "no column 'title'"),
        (lambda x, y: (x, y.rename({"item": "id"})), {}, "no column 'item'"),
        (lambda x, y: (x, y), {"model": {"d_modle": 3}}, "model.d_modle; did you mean model.d_mod"),
        (lambda x, y: (x, y), {"sead": 3}, "Unknown field sead; did you mean seed"),
        (lambda x, y: (x, y), {"model": {"d_model": "wide"}}, "model.d_model can't be 'wide'"),
        (lambda x, y: (x, y), {"model": {"num_heads": 3}}, "3 heads .* do not divide"),
        (lambda x, y: (x, y), {"seed": None}, "seed can't be None: it is of type int"),
        (lambda x, y: (x, y), {"baseline": {"kind": "item_knn"}}, "baseline.kind can't be set"),
        (lambda x, y: (x, y), {"data": {"raw_dir": "x"}}, "data.raw_dir can't be set"),
        (lambda x, y: ([["u", "i"]], y), {}, "is of type list; it must be a DataFrame"),
        (lambda x, y: (x.head(0), y), {}, "no rows"),
        (lambda x, y: (pl.DataFrame({"user": [object()]}), y), {}, "A column can't be stored"),
    ],
)
def test_what_makes_no_sense(frames, small, tmp_path, case):
    change, settings, message = case
    with pytest.raises(UserError, match=message):
        fit(*change(*frames), workdir=tmp_path / "run", **{**small, **settings})
    # Nothing is in the way of the mended call.
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"user": ["a"]}, "no column 'item'"),
        ({"items": [["i1"]]}, "no column 'user'"),
        ({"user": ["a"], "items": [["i1"]], "times": [["soon"]]}, "DataFrame of histories"),
        ({"user": ["a", None], "item": ["i1", "i2"]}, "of histories, row 2: the user is missing"),
        ({"user": ["a"], "item": ["i1"], "timestamp": ["long ago"]}, "row 1: .*long ago"),
        ({"user": ["a"] * 3, "item": ["i1"] * 3, "timestamp": [2, None, 1]}, "row 2: .*timestamp"),
        ({"user": ["a"], "item": [object()]}, "a column can't be read"),
    ],
)
def test_frames_of_histories_that_make_no_sense(fitted, frame, message):
    with pytest.raises(UserError, match=message):
        fitted.recommend(pl.DataFrame(frame))


def test_frames_that_cannot_be_read_or_go_with_nothing_else(fitted):
    with pytest.raises(UserError, match="strings or whole numbers, in a column all of one type"):
        fitted.recommend(pd.DataFrame({"user": ["a"], "item": [2**80]}))
    with pytest.raises(UserError, match="pass times, events and profiles as columns"):
        fitted.recommend(pl.DataFrame({"user": ["a"], "item": ["i1"]}), times=[[1.0]])


def test_frames_without_rows_give_none(fitted):
    for schema in (["user", "item", "timestamp"], ["user", "items"]):
        found = fitted.recommend(pl.DataFrame({name: [] for name in schema}))
        assert found.height == 0 and "item" in found.columns


def test_blanks_around_users_of_a_frame_are_not_theirs(fitted):
    rows = {"user": ["a", " a", "b"], "item": ["i1", "i2", "i3"]}
    expected = fitted.recommend(pl.DataFrame(rows | {"user": ["a", "a", "b"]}))
    assert_frame_equal(fitted.recommend(pl.DataFrame(rows)), expected)


def test_columns_that_nobody_reads_do_no_harm(fitted):
    rows = {"user": ["a", "a"], "item": ["i1", "i2"]}
    expected = fitted.recommend(pl.DataFrame(rows))
    assert_frame_equal(fitted.recommend(pl.DataFrame(rows | {"other": [object()] * 2})), expected)


def test_times_as_text_are_put_in_the_order_of_time(fitted):
    def lists(times):
        frame = pl.DataFrame({"user": ["a", "a"], "item": ["i2", "i1"], "timestamp": times})
        return fitted.recommend(frame)

    assert_frame_equal(lists(["100", "99"]), lists([100, 99]))
    (expected,) = fitted.recommend([["i1", "i2"]], times=[[99.0, 100.0]])
    assert lists(["100", "99"])["item"].to_list() == [x.item for x in expected.items]


def test_whole_numbers_that_pandas_made_floats(frames, small, tmp_path):
    """A missing item makes all others floats; ids stay whole numbers."""
    rows = frames[0].with_columns(pl.col("item").str.strip_prefix("i").cast(pl.Int64))
    settings = {name: value for name, value in small.items() if name != "content"}
    recommender = fit(rows.to_pandas(), workdir=tmp_path / "run", **settings)
    histories = pd.DataFrame({"user": ["a", "a", "b"], "item": [1, 2, None]})
    assert histories["item"].dtype == float
    found = recommender.recommend(histories, top_k=3)
    (expected,) = recommender.recommend([[1, 2]], top_k=3)
    assert found[found["user"] == "a"]["item"].to_list() == [x.item for x in expected.items]
    assert found.groupby("user")["popular"].first().to_list() == [False, True]


def test_a_folder_of_ones_own_stays(frames, small, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "items.parquet").write_bytes(b"mine")
    fit(*frames, workdir=tmp_path, **small)
    assert (tmp_path / "data" / "items.parquet").read_bytes() == b"mine"
    for folder in ("gs://bucket/run", Path("gs://bucket/run")):
        with pytest.raises(UserError, match=r"folder of this machine|no folder"):
            fit(*frames, workdir=str(folder), **small)


def test_the_card_tells_of_sequences(fitted, tmp_path):
    fitted.save(tmp_path / "with", sequences=True)
    assert "don't publish it" in (tmp_path / "with" / "README.md").read_text()
    saved = json.loads((tmp_path / "with" / "config.json").read_text())
    assert saved["data"]["raw_dir"] == "" and "pytest" not in saved["data"]["cache_dir"]
    with pytest.raises(UserError, match="no folder of this machine"):
        fitted.save("gs://bucket/model")


def test_the_code_of_the_guide(frames, small, tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "guides" / "own_data.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    settings = 'train={"num_epochs": 20}, seed=1'
    assert settings in code
    monkeypatch.chdir(tmp_path)
    interactions, items = frames
    names = {"interactions": interactions, "items": items, "small": small}
    names["histories"] = pl.DataFrame({"user": ["a"], "items": [["i1", "i2"]]})
    exec(compile(code.replace(settings, "**small"), "own_data.md", "exec"), names)
    assert names["lists"].height == 10 and "ndcg@10" in capsys.readouterr().out
