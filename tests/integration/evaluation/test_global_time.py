"""Training and evaluation by one date for all users: nothing later than the date is read."""

import shutil

import numpy as np
import pytest

from tests.support.raw_data import tiny_config
from tssr_jax.data_pipeline.gate_rows import gate_rows
from tssr_jax.errors import UserError
from tssr_jax.evaluation.evaluate import evaluate, run_baseline
from tssr_jax.memory.co_occurrence import training_events
from tssr_jax.run import build_run
from tssr_jax.training.loop import train, train_batches

DAY = 86_400
MINUTES = 1440
FIRST, SECOND = 70, 85  # days
CUTS = ("1970-03-12", "1970-03-27")  # of these days


@pytest.fixture(name="config")
def fixture_config(tmp_path):
    """Users walk along the items, one every third day, and begin at any time of two months."""
    config = tiny_config(tmp_path)
    rng = np.random.default_rng(0)
    rows = []
    for user in range(80):
        start, item = rng.integers(0, 80), rng.integers(20)
        rows += [f"u{user},i{(item + n) % 20},{(start + 3 * n) * DAY + n}\n" for n in range(8)]
    (tmp_path / "raw" / "interactions.csv").write_text("user,item,timestamp\n" + "".join(rows))
    config.evaluate.update(split="global_time", cuts=CUTS)
    config.model.memory = ("co_occurrence", "words", "popularity")
    config.model.head = "tied"
    config.train.update(windows="strided", window_stride=2, num_epochs=2)
    return config


def by_hand(tmp_path):
    """Each user's items and days, by time."""
    rows = (tmp_path / "raw" / "interactions.csv").read_text().splitlines()[1:]
    users = {}
    for user, item, seconds in (row.split(",") for row in rows):
        users.setdefault(user, []).append((int(seconds) / DAY, item))
    return {user: sorted(own) for user, own in users.items()}


def test_nothing_that_training_reads_is_of_a_later_day(config, tmp_path):
    run = build_run(config)
    batches = train_batches(run)
    stream = batches.iterate(0)
    latest, last_items = 0, set()
    for _ in range(batches.steps_per_epoch):
        batch = next(stream)
        latest = max(latest, int(batch["times"].max()))
        last_items |= {int(x) for x in np.asarray(batch["labels"]).ravel()}
    assert 0 < latest < FIRST * MINUTES
    assert training_events(run.sequences).minutes.max() < FIRST * MINUTES
    gate = gate_rows(run.sequences, config, run.data.num_items)
    assert gate.times.max() < FIRST * MINUTES
    histories = by_hand(tmp_path)
    trained = {u: [i for at, i in own if at < FIRST] for u, own in histories.items()}
    for user, label in zip(gate.users, gate.labels, strict=True):
        own = trained[run.data.user_ids[user]]
        assert own[-1] == run.data.item_ids[label - 1] and len(own) > 2
    lent = len(gate.users)
    total = sum(map(len, trained.values())) - lent
    windows = [own for own in trained.values() if len(own) > 1]
    assert run.counts.sum() <= total <= run.counts.sum() + len(trained) - len(windows) + lent
    assert latest > (FIRST - 5) * MINUTES


@pytest.mark.parametrize("targets", ["first", "last", "all"])
def test_a_run_from_training_to_another_machine(config, tmp_path, targets, capsys):
    config.evaluate.targets = targets
    metrics = train(config, tmp_path / "run")
    expected = {"validation": 0, "test": 0}
    for own in by_hand(tmp_path).values():
        for name, start, end in (("validation", FIRST, SECOND), ("test", SECOND, 1000)):
            places = [i for i, (at, _) in enumerate(own) if i and start <= at < end]
            expected[name] += len(places) if targets == "all" else bool(places)
    assert metrics["num_users"] == expected["test"] > 5
    told = capsys.readouterr().out
    assert f"validation before {CUTS[1]} ({expected['validation']} answers)" in told
    with np.load(tmp_path / "run" / "per_user.npz") as arrays:
        assert len(arrays["test_rank"]) == len(arrays["history"]) == expected["test"]
        assert len(arrays["validation_rank"]) == expected["validation"]
    moved = shutil.copytree(tmp_path / "run", tmp_path / "moved")
    assert evaluate(moved)["ndcg@10"] == pytest.approx(metrics["ndcg@10"])


def test_baselines_rank_the_same_answers(config, tmp_path):
    config.baseline.kind = "item_knn"
    metrics = run_baseline(config, tmp_path / "knn")
    config.baseline.kind = "popularity"
    assert run_baseline(config, tmp_path / "popular")["num_users"] == metrics["num_users"]
    # All follow one way: what comes next was often taken together with what was before.
    assert metrics["ndcg@10"] > 0.3


def test_a_date_after_all_is_told(config, tmp_path):
    config.evaluate.cuts = (0.8, "2024-01-01")
    with pytest.raises(UserError, match="Nobody has an answer for test"):
        train(config, tmp_path / "run")
