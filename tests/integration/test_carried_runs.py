"""Runs that are carried to a place without raw files, encoder and cache."""

import gzip
import json
import shutil

import pytest
from etils import epath

from tests.support.raw_data import tiny_config
from tests.support.with_memories import config_of
from tssr_jax.config.files import read_signed, write_signed
from tssr_jax.errors import UserError
from tssr_jax.evaluation.evaluate import evaluate
from tssr_jax.recommending.export import ExportRequest, run_export
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.training.loop import train

HISTORIES = [["i3", "i4", "i5"], ["i9"], []]
TIMES = [[60.0, 60.0, 120.0], [1e9], []]


def lists_of(workdir):
    recommender = Recommender.from_workdir(workdir, batch_size=8)
    found = recommender.recommend(HISTORIES, top_k=5, times=TIMES)
    return [[(item.item, item.title, item.score) for item in own.items] for own in found]


@pytest.fixture(name="place", scope="module")
def fixture_place(tmp_path_factory):
    """A machine with a trained run with memories: the folders raw, cache, text_model and run."""
    folder = tmp_path_factory.mktemp("here")
    config = config_of(folder, **{"model.head": "tied", "model.id_neighbours": 3})
    train(config, folder / "run")
    return folder


def carry(place, folder, what="run"):
    """Another machine with one folder of this one, which is gone."""
    there = folder / "there" / what
    shutil.copytree(place / what, there)
    return there


@pytest.fixture(name="gone")
def fixture_gone(place, monkeypatch, tmp_path):
    """Takes this machine's files away for the time of a test; returns where they are."""
    away = tmp_path / "away"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place.rename(away)
    yield away
    shutil.rmtree(place, ignore_errors=True)
    away.rename(place)


def test_a_workdir_gives_the_same_lists_anywhere(place, gone, tmp_path):
    here = carry(gone, tmp_path)
    there = lists_of(here)
    assert not Recommender.from_workdir(here, batch_size=8).run.has_users()
    gone.rename(place)
    assert Recommender.from_workdir(place / "run", batch_size=8).run.has_users()
    expected = lists_of(place / "run")
    place.rename(gone)
    assert there == expected and [len(own) for own in there] == [5, 5, 5]
    run_export(here, ExportRequest(tmp_path / "out", ("stablehlo",), top_k=5))
    with pytest.raises(UserError, match=r"Source 'csv': there is no folder .*raw.*--raw_dir"):
        evaluate(here)


def test_new_items_need_the_encoder_only(place, gone, tmp_path):
    here = carry(gone, tmp_path)
    shutil.copytree(gone / "text_model", place / "text_model")
    (tmp_path / "new.csv").write_text("item,title\nn1,a red wooden car\n")
    recommender = Recommender.from_workdir(here, new_items=tmp_path / "new.csv", batch_size=8)
    assert recommender.recommend([["n1"]], top_k=3)[0].items


@pytest.mark.parametrize("sequences", [False, True])
def test_an_exported_run(place, tmp_path, sequences, monkeypatch):
    out, run = tmp_path / "out", place / "run"
    run_export(run, ExportRequest(out, ("run",), sequences=sequences))
    expected, metrics = lists_of(run), json.loads((run / "test_metrics.json").read_text())
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    here = carry(out, tmp_path)
    size = sum(path.stat().st_size for path in here.rglob("*") if path.is_file())
    assert size < sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    away = tmp_path / "away"
    place.rename(away)
    try:
        assert lists_of(here) == expected
        if sequences:
            evaluate(here)
            assert json.loads((here / "test_metrics.json").read_text()) == metrics
        else:
            files = {path.name for path in (*here.iterdir(), *(here / "catalogue").iterdir())}
            of_run = {"config.json", "data.json", "params.safetensors", "catalogue"}
            of_items = {"items", "report.json", "arrays.safetensors", "run.json", "digests.json"}
            measured = {"metrics.jsonl", "README.md"} | {
                f"{name}_metrics.json" for name in ("validation", "test", "simple")
            }
            assert files == of_run | of_items | measured
            with pytest.raises(UserError, match=r"--raw_dir=FOLDER to ask a run"):
                evaluate(here)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        away.rename(place)


def test_a_run_whose_encoder_was_trained_has_its_vectors(tmp_path):
    config = tiny_config(tmp_path / "here")
    config.content.text.update(trained_layers=1, micro_batch=4, learning_rate=1e-2)
    config.num_devices = 2
    config.train.num_epochs = 1
    run = tmp_path / "here" / "run"
    metrics = train(config, run)
    expected = lists_of(run)
    assert evaluate(run) == pytest.approx(metrics, rel=1e-6)
    run_export(run, ExportRequest(tmp_path / "out", ("run",)))
    config.train.num_epochs = 2
    train(config, run)  # begins without the vectors of the first epoch, ends with its own
    later = lists_of(run)
    assert later != expected
    shutil.copytree(run, tmp_path / "workdir")
    shutil.rmtree(tmp_path / "here")
    assert lists_of(tmp_path / "out" / "run") == expected
    assert lists_of(tmp_path / "workdir") == later


def test_a_cache_that_cannot_be_made_is_replaced_and_told(place, tmp_path, capsys, monkeypatch):
    shutil.copytree(place / "run", tmp_path / "run")
    config = read_signed(epath.Path(tmp_path / "run" / "config.json"))
    (tmp_path / "file").touch()
    theirs = str(tmp_path / "file" / "cache")
    config["data"]["cache_dir"] = theirs
    write_signed(epath.Path(tmp_path / "run" / "config.json"), config)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = lists_of(place / "run")
    assert lists_of(tmp_path / "run") == expected
    told = f"The cache is in ~/.cache/tssr_jax: the run's, {theirs}, can't be written here."
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("catalogue/arrays.safetensors", lambda content: content[:-8] + b"\0" * 8),
        ("catalogue/items/sizes.npy", lambda content: content[:-1] + b"\7"),
        ("params.safetensors", lambda content: content[:-4]),
        ("params.safetensors", lambda content: content[:-40] + b"\1" + content[-39:]),
    ],
)
def test_damage_is_told(place, tmp_path, name, change):
    run_export(place / "run", ExportRequest(tmp_path / "out", ("run",)))
    path = tmp_path / "out" / "run" / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{name.split('/')[0]} is damaged"):
        lists_of(tmp_path / "out" / "run")


def test_parts_of_other_data_are_told(tmp_path):
    """A run is begun anew on other data where parts of the old one are left; and parts are mixed.

    Both data sets have as many items, so that all shapes are equal.
    """
    runs = {}
    for name in ("one", "two"):
        config = tiny_config(tmp_path / name)
        config.train.num_epochs = 1
        raw = tmp_path / name / "raw" / "items.csv"
        if name == "two":
            raw.write_text(raw.read_text().replace("\n", " too\n").replace("title too", "title"))
        runs[name] = tmp_path / name / "run"
        train(config, runs[name])
        run_export(runs[name], ExportRequest(tmp_path / name / "out", ("run",)))
    shutil.copytree(runs["one"], tmp_path / "anew")
    (tmp_path / "anew" / "config.json").unlink()  # as a start that failed leaves it
    shutil.rmtree(tmp_path / "anew" / "checkpoints")
    train(config, tmp_path / "anew")
    assert lists_of(tmp_path / "anew") == lists_of(runs["two"])
    for part in ("catalogue", "checkpoints", "params.safetensors"):
        own = "out/run" if part == "params.safetensors" else "run"
        mixed = tmp_path / f"mixed-{part}"
        shutil.copytree(tmp_path / "one" / own, mixed)
        shutil.rmtree(mixed / part, ignore_errors=True)
        copy = shutil.copy if part == "params.safetensors" else shutil.copytree
        copy(tmp_path / "two" / own / part, mixed / part)
        with pytest.raises(UserError, match=f"{part}.* not of (the|this) run"):
            lists_of(mixed)


def test_a_folder_without_data_json_is_told(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    (tmp_path / "run" / "data.json").unlink()
    with pytest.raises(UserError, match=r"data\.json does not exist. Copy the whole folder"):
        lists_of(tmp_path / "run")


def test_a_compressed_file_is_the_same_data(tmp_path):
    config = tiny_config(tmp_path)
    config.train.num_epochs = 1
    train(config, tmp_path / "run")
    raw = tmp_path / "raw"
    for name in ("interactions.csv", "items.csv"):
        content = (raw / name).read_bytes()
        (raw / name).unlink()
        (raw / f"{name}.gz").write_bytes(gzip.compress(content))
    config.train.num_epochs = 2
    assert train(config, tmp_path / "run")
    rows = gzip.decompress((raw / "interactions.csv.gz").read_bytes()).splitlines()
    (raw / "interactions.csv.gz").write_bytes(gzip.compress(b"\n".join(rows[:-1])))
    with pytest.raises(UserError, match="The data is not that of the run"):
        train(config, tmp_path / "run")
