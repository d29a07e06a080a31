"""Going on with yesterday's model: items by id, new ones from what is like them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import csv
from tests.support.raw_data import two_configs, write_csv, write_text_model
from tests.support.runs import ROOT, best_params, metrics_of
from tssr_jax.adapting import adapted
from tssr_jax.config import default_config
from tssr_jax.errors import UserError
from tssr_jax.run import build_run
from tssr_jax.training.loop import train


@pytest.fixture(name="configs")
def fixture_configs(tmp_path):
    """Two days of a shop: on the second one item is gone, and one is new."""
    configs = two_configs(tmp_path)
    for config in configs:
        config.content.text.encoder = "ngrams"
    raw = tmp_path / "second" / "raw"
    interactions = (raw / "interactions.csv").read_text()
    (raw / "interactions.csv").write_text(interactions.replace(",i3,", ",new,"))
    items = (raw / "items.csv").read_text().splitlines()
    (title,) = [line.partition(",")[2] for line in items if line.startswith("i5,")]
    items = [line for line in items if not line.startswith("i3,")] + [f"new,{title}"]
    (raw / "items.csv").write_text("\n".join(items) + "\n")
    return configs


@pytest.mark.parametrize("head", ["classes", "tied"])
def test_rows_of_items_are_found_by_their_ids(configs, tmp_path, head, capsys):
    first, second = configs
    for config in configs:
        config.model.head = head
    train(first, tmp_path / "a")
    second.train.update(warm_start=str(tmp_path / "a"), num_epochs=0)
    train(second, tmp_path / "b")
    assert "19 items keep their vectors, 1 new items start from" in capsys.readouterr().out
    start, own = best_params(first, tmp_path / "a"), best_params(second, tmp_path / "b")
    before, after = (build_run(config).data.item_ids for config in configs)
    rows = {item: place for place, item in enumerate(before, 1)}
    tables = [(p["token_embedding"]["embedding"]) for p in (start, own)]
    if head == "classes":
        tables += [p["output"]["kernel"].T for p in (start, own)]
        tables += [p["output"]["bias"][:, None] for p in (start, own)]
    for old, new in zip(tables[::2], tables[1::2], strict=True):
        np.testing.assert_array_equal(new[0], old[0])
        for place, item in enumerate(after, 1):
            if item != "new":
                np.testing.assert_array_equal(new[place], old[rows[item]], err_msg=item)
    np.testing.assert_equal(own["blocks"], start["blocks"])
    # By hand: the mean of the ten items whose texts are most like the new one's.
    features = np.asarray(build_run(second).content.features["text"])
    place = 1 + after.index("new")
    likeness = features @ features[place]
    likeness[[0, place]] = -np.inf
    near = np.argsort(-likeness)[:10]
    assert "i5" in {after[n - 1] for n in near}
    expected = tables[0][[rows[after[n - 1]] for n in near]].mean(axis=0)
    gap = np.abs(tables[1][place] - expected).max()
    assert gap < 1e-6 or np.isclose(likeness[near[-1]], np.sort(likeness)[-11])


def test_a_warm_start_begins_better_and_trains_on(configs, tmp_path):
    first, second = configs
    first.train.num_epochs = 6
    train(first, tmp_path / "a")
    second.train.num_epochs = 1
    cold = train(second, tmp_path / "cold")
    second.train.warm_start = str(tmp_path / "a")
    warm = train(second, tmp_path / "warm")
    assert warm["ndcg@10"] > cold["ndcg@10"]
    second.update(parallel="shard_map", num_devices=2, model_devices=2)
    assert train(second, tmp_path / "cut")["ndcg@10"] == pytest.approx(warm["ndcg@10"], rel=0.2)


def test_training_that_makes_it_worse_keeps_what_it_began_with(configs, tmp_path, capsys):
    first, second = configs
    for config in configs:
        config.train.num_epochs = 8
    train(first, tmp_path / "a")
    second.train.update(warm_start=str(tmp_path / "a"), num_epochs=0)
    expected = train(second, tmp_path / "as it was")
    second.train.update(num_epochs=6, early_stopping_patience=2)
    second.optimizer.learning_rate = 3.0  # destroys the parameters
    assert train(second, tmp_path / "b") == expected
    told = capsys.readouterr().out
    assert told.count("As it starts, validation NDCG@10 is") == 2
    epochs = [x["epoch"] for x in metrics_of(tmp_path / "b") if "train/total" in x]
    assert epochs == [1.0, 2.0]


def test_what_can_not_be_carried(configs, tmp_path):
    first, second = configs
    train(first, tmp_path / "a")
    second.train.warm_start = str(tmp_path / "a")
    second.model.d_ffn = 32
    with pytest.raises(UserError, match=r"train\.warm_start=.*that run has model\.d_ffn=16"):
        train(second, tmp_path / "b")
    second.model.d_ffn = 16
    second.train.init_from = str(tmp_path / "a")
    with pytest.raises(UserError, match="set one of them"):
        train(second, tmp_path / "b")
    second.train.init_from = ""
    second.content.text.update(encoder="bert", trained_layers=1)
    with pytest.raises(UserError, match="warm_start goes with frozen encoders"):
        train(second, tmp_path / "b")
    second.content.text.update(encoder="ngrams", trained_layers=0)
    raw = tmp_path / "second" / "raw"
    for path in raw.iterdir():
        path.write_text(path.read_text().replace("i", "j").replace("jtem", "item"))
    text = (raw / "interactions.csv").read_text()
    (raw / "interactions.csv").write_text(text.replace("tjmestamp", "timestamp"))
    (raw / "items.csv").write_text((raw / "items.csv").read_text().replace("tjtle", "title"))
    with pytest.raises(UserError, match="This run shares none of the 20 items"):
        train(second, tmp_path / "c")


@pytest.mark.parametrize("field", ["warm_start", "init_from"])
def test_the_model_is_that_of_the_run_before(configs, tmp_path, field):
    """Whatever the data are now: open fields of the model are not chosen anew."""
    first, second = configs
    train(first, tmp_path / "a")
    config = csv.get_config(second.data.raw_dir)
    config.data.cache_dir = second.data.cache_dir
    config.content = second.content
    config.train[field] = str(tmp_path / "a")
    found = adapted(config)
    names = (
        "d_model",
        "d_ffn",
        "num_heads",
        "dropout_rate",
        "id_neighbours",
        "tie_orders",
        "memory",
    )
    assert [found.model[n] for n in names] == [first.model[n] for n in names]
    assert found.train.batch_size == 16


def test_the_script_of_every_day(tmp_path):
    """Twice: the second day begins with the first day's model, and is put in its place or not."""
    write_csv(tmp_path / "data", num_users=60)
    write_text_model(tmp_path / "text_model")
    rows = (tmp_path / "data" / "interactions.csv").read_text().splitlines()
    later = [row.rsplit(",", 1) for row in rows[1:]]  # a day for each step
    later = [f"{row},{86_400 * (int(at) // 10)}" for row, at in later]
    (tmp_path / "data" / "interactions.csv").write_text("\n".join([rows[0], *later]) + "\n")
    command = [
        str(ROOT / "examples" / "retrain_daily.sh"), str(tmp_path / "data"), str(tmp_path / "runs"),
        "--config.train.num_epochs=1",
        "--config.model.d_model=16", "--config.model.d_ffn=16", "--config.model.num_heads=2",
        "--config.content.text.encoder=ngrams", "--config.num_devices=1",
        f"--config.data.cache_dir={tmp_path / 'cache'}", "--config.evaluate.list_length=0",
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "DAYS": "(0.6,0.8)"}
    told = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
    current = (tmp_path / "runs" / "current").resolve()
    assert (current / "test_metrics.json").is_file()
    (first, *_) = sorted(p for p in (tmp_path / "runs").iterdir() if not p.is_symlink())
    (verdict, old, own) = re.findall(
        r"newest day: (\w+) \(([0-9.]+) by the current model, ([0-9.]+) by", told[1]
    )[0]
    assert (verdict == "promoted") == (current != first.resolve())
    metrics = json.loads((current / "test_metrics.json").read_text())
    assert verdict != "promoted" or f"{metrics['ndcg@10']:.4f}" == own
    assert (verdict == "promoted") == (float(own) >= float(old))
    assert not list((tmp_path / "runs").glob("*-before"))


def test_vectors_of_events_are_found_by_their_names(configs, tmp_path):
    """The second day has a new event, which begins as the mean, and lacks one of the first."""
    for config, kinds in zip(configs, (("buy", "view"), ("buy", "cart")), strict=True):
        path = Path(config.data.raw_dir) / "interactions.csv"
        header, *lines = path.read_text().split()
        rows = [f"{line},{kinds[i % 2]}" for i, line in enumerate(lines)]
        path.write_text("\n".join([f"{header},event", *rows]) + "\n")
        config.data.target_events = ("buy",)
    first, second = configs
    train(first, tmp_path / "a")
    second.train.update(warm_start=str(tmp_path / "a"), num_epochs=0)
    train(second, tmp_path / "b")
    old, new = (
        np.asarray(best_params(config, tmp_path / name)["event_embedding"]["embedding"])
        for config, name in zip(configs, "ab", strict=True)
    )
    # Numbers: view 1, buy 2; cart 1, buy 2.
    np.testing.assert_array_equal(new[[0, 2]], old[[0, 2]])
    np.testing.assert_allclose(new[1], old[1:].mean(axis=0), rtol=1e-6)
    second.train.update(warm_start="", init_from=str(tmp_path / "a"))
    train(second, tmp_path / "c")
    other = np.asarray(best_params(second, tmp_path / "c")["event_embedding"]["embedding"])
    np.testing.assert_array_equal(other, new)
    second.data.target_events = ()
    for name in ("warm_start", "init_from"):
        second.train.update(warm_start="", init_from="")
        second.train[name] = str(tmp_path / "a")
        with pytest.raises(
            UserError, match=rf"{name}=.*: that run reads events .* reads no events"
        ):
            train(second, tmp_path / name)


def test_what_this_run_is_measured_by_was_not_trained_on(configs, tmp_path):
    """Of each pair of splits: which start is refused."""
    first, second = configs
    rows = [
        f"u{user},i{(user + 3 * step) % 12},{80_000 * step + user}"
        for user in range(40)
        for step in range(5)
    ]
    for config in configs:
        path = Path(config.data.raw_dir) / "interactions.csv"
        path.write_text("\n".join(["user,item,timestamp", *rows]) + "\n")
        config.train.num_epochs = 1
    days = ("1970-01-02", "1970-01-03", "1970-01-04")
    dated = {"split": "global_time", "cuts": days[1:]}
    train(first, tmp_path / "left out")
    first.evaluate.update(dated)
    train(first, tmp_path / "dated")
    assert json.loads((tmp_path / "dated" / "data.json").read_text())["trained_before"] == days[1]

    def start(name, **evaluate):
        config = second.copy_and_resolve_references()
        config.evaluate.update(evaluate)
        config.train.update(warm_start=str(tmp_path / name), num_epochs=0)
        return train(config, tmp_path / f"new {len(list(tmp_path.iterdir()))}")

    with pytest.raises(UserError, match="was split by time, so it was trained on the newest items"):
        start("dated")
    with pytest.raises(UserError, match=f"interactions before 1970-01-05, .* from {days[1]} on"):
        start("left out", **dated)
    with pytest.raises(UserError, match=f"before {days[1]}, and this run is .* from {days[0]} on"):
        start("dated", split="global_time", cuts=days[:2])
    with pytest.raises(UserError, match="trained on the users that this run validates by"):
        start("dated", split="global_time", cuts=days[1:2])
    assert start("dated", **dated) and start("left out")
    # One date: a refit has read the validation targets, though it stops at the date, too.
    first.evaluate.update(cuts=days[1:2])
    train(first, tmp_path / "one date")
    first.evaluate.update(held_out=("test",))
    first.train.early_stopping_patience = 0
    train(first, tmp_path / "refit")
    one_date = {"split": "global_time", "cuts": days[1:2]}
    with pytest.raises(UserError, match="trained on the users that this run validates by"):
        start("refit", **one_date)
    assert start("one date", **one_date)
    # Leave-one-out: on later data the targets of this run may have been training items.
    later = Path(first.data.raw_dir) / "interactions.csv"
    later.write_text("\n".join([later.read_text().strip(), f"u0,i5,{9 * 86_400}"]) + "\n")
    first.evaluate.update(default_config().evaluate)
    train(first, tmp_path / "later")
    with pytest.raises(UserError, match="up to 1970-01-10, and this run's data ends on 1970-01-04"):
        start("later")
