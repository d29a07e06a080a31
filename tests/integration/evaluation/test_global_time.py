"""Training and evaluation by one date for all users: nothing later than the date is read."""

import dataclasses
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.raw_data import tiny_config
from tssr_jax.data_pipeline.gate_rows import gate_rows, trained_lengths
from tssr_jax.errors import UserError
from tssr_jax.evaluation.evaluate import evaluate, run_baseline
from tssr_jax.memory.co_occurrence import training_events
from tssr_jax.models.apply import head_weights, newest, score
from tssr_jax.models.recall import GATE, all_scores, memory_scores, recall
from tssr_jax.run import build_run
from tssr_jax.training.gate import gate_gradients
from tssr_jax.training.gate_inputs import gate_inputs
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
    assert (gate.times[:, -1] < gate.asked).all() and gate.asked.max() < FIRST * MINUTES
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


def test_popularity_is_of_the_date_of_the_question(config):
    """Of now where histories are ranked, however old they are; the gate's questions are older."""
    run = build_run(config)
    params, memories = run.initial_params(), run.content.memories
    items, days = np.array([[3, 9, 4]], np.int32), np.array([[10, 20, 30]], np.int32)
    read = [
        score(run.model, params, items, run.content, MINUTES * (days + later))
        for later in (0, 35, 1000)
    ]
    np.testing.assert_array_equal(read[0], read[1])
    np.testing.assert_array_equal(read[0], read[2])
    gate = gate_inputs(run).arrays
    rows = {name: gate[name] for name in ("item_sequence", "times", "asked")}
    recalled = recall(run.model, params, rows, memories)
    scores = dict(
        zip(
            run.model.memory,
            memory_scores(run.model.memory, recalled, memories, run.model.classes),
            strict=True,
        )
    )["popularity"]
    trained = training_events(run.sequences, ends=trained_lengths(run.sequences, config))
    ends = memories.popularity.ends
    for own, asked in zip(np.asarray(scores), gate["asked"], strict=True):
        begins = ends[ends < asked].max(initial=0)
        known = np.unique(trained.items[trained.minutes <= begins])
        np.testing.assert_array_equal(np.flatnonzero(own), known)


def test_the_gate_learns_of_items_that_nobody_has_taken(config):
    """If all labels count as new, their loss is that of content that knows none of them."""
    run = build_run(config)
    rng, params = np.random.default_rng(0), dict(run.initial_params())
    params[GATE] = {name: rng.normal(0, 0.05, x.shape) for name, x in params[GATE].items()}
    params["output"] = {"bias": jnp.array(rng.normal(size=run.data.num_items + 1))}
    rows = {name: jnp.asarray(values) for name, values in gate_inputs(run).arrays.items()}
    rows["row_mask"] = jnp.ones(len(rows["labels"]), bool)
    labels = np.asarray(rows["labels"])
    new = np.isin(np.arange(run.data.num_items + 1), labels)
    assert 1 < new.sum() < run.data.num_items
    memories = run.content.memories
    tables = {
        name: table._replace(likeness=np.where(new[table.classes], 0, table.likeness))
        for name, table in memories.tables.items()
        if name != "words"
    }
    scores = np.where(new, 0, memories.popularity.scores)
    unseen = memories._replace(
        tables=dict(memories.tables) | tables,
        popularity=memories.popularity._replace(scores=scores),
        frequency=np.where(new, np.asarray(memories.frequency).min(), memories.frequency),
    )
    content = dataclasses.replace(
        run.content, memories=unseen, known=np.asarray(run.content.known) & ~new
    )
    fused = newest(run.model, params, rows, run.content).fused[:, -1]
    weights = head_weights(run.model, params, content)
    recalled = recall(run.model, params, rows, unseen)
    found = all_scores(run.model, params, weights, fused, recalled, unseen)
    losses = []
    for own, history, label in zip(np.array(found), rows["item_sequence"], labels, strict=True):
        own[[0, *history.tolist()]] = -np.inf
        losses.append(np.log(np.exp(own).sum()) - own[label])
    for as_new in (True, False):
        rows["as_new"] = jnp.full(len(labels), as_new)
        _, term = gate_gradients(run.model, params[GATE], params, rows, run.content)
        assert (abs(float(term.mean()) - np.mean(losses)) < 1e-4) == as_new


def test_what_is_new_when_it_is_asked_for(config):
    """An item that was first taken a share of `asked_for` ago: the share of draws above it."""
    run = build_run(config)
    store = run.sequences
    assert store.splits.asked_for == (SECOND - FIRST) * MINUTES
    rows, events = gate_rows(store, config, run.data.num_items), training_events(store)
    ages = np.array(
        [
            asked - events.minutes[events.items == label].min()
            for label, asked in zip(rows.labels, rows.asked, strict=True)
        ]
    )
    found = []
    for asked_for in (0, ages.max(), 2 * ages.max(), 1000 * ages.max()):
        store.splits = store.splits._replace(asked_for=int(asked_for))
        found.append(gate_inputs(run).arrays["as_new"])
        assert not found[-1][ages >= max(asked_for, 1)].any()
    assert not found[0].any() and 0 < found[2].sum() < found[2].size and found[3].all()


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
    assert f"validation before {CUTS[1]} ({expected['validation']} targets)" in told
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
    with pytest.raises(UserError, match="Nobody has a target for test"):
        train(config, tmp_path / "run")
