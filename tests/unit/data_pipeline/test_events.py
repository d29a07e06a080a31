"""Events and weights of interactions: read, stored, predicted or only read, and in batches."""

import datetime
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import csv
from tests.support.raw_data import write_csv
from tests.support.raw_layouts import write_layout
from tssr_jax.config import default_config
from tssr_jax.data_pipeline import interactions
from tssr_jax.data_pipeline.counts import repeated_share
from tssr_jax.data_pipeline.eval_batches import EvalBatches
from tssr_jax.data_pipeline.gate_rows import gate_rows, trained_lengths
from tssr_jax.data_pipeline.input_pipeline import TrainBatches
from tssr_jax.data_pipeline.prepare import prepare
from tssr_jax.data_pipeline.splits import global_time
from tssr_jax.data_pipeline.store import SequenceStore, open_store
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.errors import UserError

DAY = 1440
# Events 1 and 3 are predicted.
PREDICTED = np.array([False, True, False, True])
USERS = st.lists(
    st.lists(st.tuples(st.integers(0, 20 * DAY), st.integers(1, 3)), min_size=3, max_size=9),
    min_size=1,
    max_size=6,
)


def store_of(users):
    """Users' [(minute, event), ...]; items are 1, 2, 3, ..., and an item's weight is half of it."""
    users = [sorted(own) for own in users]
    lengths = [len(own) for own in users]
    items = np.arange(1, sum(lengths) + 1, dtype=np.int32)
    minutes, events = np.array([row for own in users for row in own], np.int32).T
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    more = {"event": events, "weight": (items / 2).astype(np.float32)}
    return users, SequenceStore.in_memory(
        *map(tf.constant, (items, minutes, offsets)),
        {name: tf.constant(values) for name, values in more.items()},
        PREDICTED,
    )


def predicted(own):
    """Places of a user's answers: of a predicted event, after at least one item."""
    return [i for i, (_, event) in enumerate(own) if i and PREDICTED[event]]


@given(USERS)
def test_leave_one_out_takes_what_is_predicted(users):
    users, store = store_of(users)
    validation, test, trained = [], [], []
    for user, own in enumerate(users):
        places = predicted(own)
        trained.append(len(own))
        every = [i for i, (_, event) in enumerate(own) if PREDICTED[event]]
        if len(every) >= 3:
            validation.append((user, places[-2]))
            test.append((user, places[-1]))
            trained[-1] = places[-2]
    assert store.splits.trained.tolist() == trained
    for name, expected in (("validation", validation), ("test", test)):
        found = store.splits.targets[name]
        assert list(zip(found.users.tolist(), found.ends.tolist(), strict=True)) == expected


@given(USERS, st.integers(1, 12), st.sampled_from(["first", "last", "all"]))
def test_a_split_by_time_takes_what_is_predicted(users, first, which):
    users, store = store_of(users)
    evaluate = default_config().evaluate
    day = datetime.date(1970, 1, 1)
    cuts = [day + datetime.timedelta(days=n) for n in (first, first + 4)]
    evaluate.cuts, evaluate.targets = tuple(map(str, cuts)), which
    expected = []
    for start, end in ((first, first + 4), (first + 4, 99)):
        answers = []
        for user, own in enumerate(users):
            some = [i for i in predicted(own) if start * DAY <= own[i][0] < end * DAY]
            some = {"first": some[:1], "last": some[-1:], "all": some}[which]
            answers += [(user, place) for place in some]
        expected.append(answers)
    trained = [sum(at < first * DAY for at, _ in own) for own in users]
    arguments = store.lengths, store.all_times, evaluate, store.predictions
    if not all(expected) or max(trained) < 2:
        with pytest.raises(UserError, match="Name other dates"):
            global_time(*arguments)
        return
    splits = global_time(*arguments)
    assert splits.trained.tolist() == trained
    for name, answers in zip(("validation", "test"), expected, strict=True):
        found = splits.targets[name]
        assert list(zip(found.users.tolist(), found.ends.tolist(), strict=True)) == answers


@pytest.fixture(name="store", scope="module")
def fixture_store():
    rng = np.random.default_rng(0)
    users = [
        [(int(at), int(event)) for at, event in zip(*drawn, strict=True)]
        for drawn in (
            (rng.integers(0, 9 * DAY, n), rng.integers(1, 4, n)) for n in rng.integers(5, 14, 30)
        )
    ]
    return store_of(users)


def rows_of(batch):
    for items, labels, events, weights in zip(
        *(batch[name] for name in ("item_sequence", "labels", "events", "label_weights")),
        strict=True,
    ):
        yield from zip(
            items.tolist(), labels.tolist(), events.tolist(), weights.tolist(), strict=True
        )


@pytest.mark.parametrize("time_noise", [(), (5.0,)])
def test_training_batches_have_events_and_weights_with_their_items(store, time_noise):
    users, store = store
    event_of = {i: event for i, (_, event) in enumerate((x for own in users for x in own), 1)}
    batches = TrainBatches(
        store, batch_size=16, max_length=6, seed=3, time_noise=time_noise, held_out=held_out()
    )
    seen = 0
    for _, batch in zip(range(batches.steps_per_epoch), batches.iterate(0), strict=False):
        for item, label, event, weight in rows_of(batch):
            assert event == event_of.get(item, 0)
            own = PREDICTED[event_of[label]] * label / 2 if label else 0.0
            assert weight == own
            seen += weight > 0
    assert seen > 30


def held_out():
    """An item is held out, so that windows move."""
    mask = np.zeros(1000, bool)
    mask[5] = True
    return mask


def test_evaluation_reads_the_events_before_an_answer(store):
    users, store = store
    flat = [event for own in users for _, event in own]
    batches = EvalBatches(
        store, "test", batch_size=8, max_length=6, full_history=True, exclude_padding_class=True
    )
    for batch in batches:
        items, events = batch["item_sequence"], batch["events"]
        assert events[items == 0].sum() == 0
        assert events[items > 0].tolist() == [flat[i - 1] for i in items[items > 0]]
        assert all(PREDICTED[flat[i - 1]] for i in batch["answers"][batch["row_mask"]])


def test_only_what_is_predicted_is_lent_to_the_gate(store):
    users, store = store
    config = default_config()
    config.model.update(memory=("co_occurrence",), max_length=6)
    flat = [event for own in users for _, event in own]
    rows = gate_rows(store, config, len(flat))
    lent = np.flatnonzero(trained_lengths(store, config) < store.splits.trained)
    # One in 64 of the training interactions, at least one, is lent.
    assert len(rows.users) and set(rows.users) <= set(lent)
    assert all(PREDICTED[flat[label - 1]] for label in rows.labels)
    there = rows.items > 0
    assert rows.side["events"][there].tolist() == [flat[i - 1] for i in rows.items[there]]


def chunk(rows):
    columns = ["user", "item", "timestamp", "event", "weight"]
    return pl.DataFrame(rows, columns, orient="row")


@pytest.mark.parametrize("reverse", [False, True])
def test_rows_of_one_time_are_ordered_whatever_the_file(tmp_path, reverse):
    rows = [
        ("u", "i", 1000, "view", 1.0),
        ("u", "i", 1000, "buy", 2.0),
        ("u", "i", 1000, "view", 0.5),
        ("u", "h", 500, "view", 1.0),
    ]
    chunks = [chunk([row]) for row in (rows[::-1] if reverse else rows)]
    # What is predicted comes after what is only read, and the larger weight is kept.
    for targets, drop, events, weights in (
        ((), False, [2, 1, 2, 2], [1.0, 2.0, 1.0, 0.5]),
        ((), True, [2, 1, 2], [1.0, 2.0, 1.0]),
        (("buy",), False, [1, 1, 1, 2], [1.0, 1.0, 0.5, 2.0]),
        (("buy",), True, [1, 1, 2], [1.0, 1.0, 2.0]),
    ):
        scratch = tmp_path / f"{drop}{targets}"
        scratch.mkdir()
        found = interactions.collect(
            chunks, scratch, tie_seed=0, drop_repeats=drop, targets=targets
        )
        assert found.events == (("view", "buy") if targets else ("buy", "view"))
        (part,) = found
        assert part["event"].tolist() == events
        assert part["weight"].tolist() == weights
        assert found.num_repeats == 4 - len(events)


def test_too_many_events_are_no_events(tmp_path):
    rows = [("u", "i", n, f"event {n}", 1.0) for n in range(256)]
    with pytest.raises(UserError, match="There are 256 different events"):
        interactions.collect([chunk(rows)], tmp_path, tie_seed=0, drop_repeats=False)


@pytest.fixture(name="config")
def fixture_config(tmp_path):
    """Own files with events and weights: each third interaction is a view of half the weight."""
    folder = write_csv(tmp_path / "raw")
    path = folder / "interactions.csv"
    header, *lines = path.read_text().splitlines()
    more = [("view,0.5" if i % 3 == 0 else "buy,2") for i in range(len(lines))]
    text = "\n".join(f"{line},{own}" for line, own in zip(lines, more, strict=True))
    path.write_text(f"{header},event,weight\n{text}\n")
    config = csv.get_config(str(folder))
    config.data.update(cache_dir=str(tmp_path / "cache"), target_events=("buy",))
    config.data.weight_column = "weight"
    return config


def test_what_is_stored_is_what_the_file_says(config):
    data = prepare(config.data)
    path = f"{config.data.raw_dir}/interactions.csv"
    rows = pl.read_csv(path).sort("timestamp")
    assert data.events == ("view", "buy")
    counts = dict(rows["event"].value_counts().iter_rows())
    report = json.loads((data.folder / "report.json").read_text())
    assert report["events"] == counts
    stores = []
    for gib in (2.0, 0.0):
        config.data.in_memory_gib = gib
        stores.append(open_store(data, config))
    for store in stores:
        assert store.weighted and store.predicted.tolist() == [False, False, True]
        for user, name in enumerate(data.user_ids):
            own = rows.filter(pl.col("user") == name)
            length = store.lengths[user]
            last = store.rows(tf.constant([user], tf.int64)).last
            ends = tf.constant([length], tf.int64)
            events, weights = (
                last(column, ends, int(length)).numpy()[0].tolist()
                for column in ("event", "weight")
            )
            assert [data.events[i - 1] for i in events] == own["event"].to_list()
            assert weights == own["weight"].to_list()
    for one, other in zip(*(store.splits.targets["test"] for store in stores), strict=True):
        np.testing.assert_array_equal(one, other)


def test_data_without_events_keeps_its_key(config):
    config.data.update(target_events=(), weight_column="")
    one = prepare(config.data)
    assert one.events == () and "events" not in one.report
    config.data.event_column = "kind"  # not read
    assert prepare(config.data).key == one.key
    config.data.update(target_events=("buy",), event_column="event")
    assert prepare(config.data).key != one.key


@pytest.mark.parametrize(
    ("fields", "row", "told"),
    [
        ({"target_events": ("sold",)}, "", r"names 'sold', which no row .* has\. .* buy, view"),
        ({"target_events": (1,)}, "", r"must be names of events, in quotes: '1', not 1"),
        ({"event_column": ""}, "", r"event_column is ''; target_events needs"),
        ({"event_column": "kind"}, "", r"has no column 'kind'"),
        ({"weight_column": "times"}, "", r"has no column 'times'"),
        ({}, "u0,i1,1,,1", r"line 2: column 'event' is empty"),
        ({}, "u0,i1,1,buy,-1", r"line 2: column 'weight' holds '-1', which is no weight"),
        ({}, "u0,i1,1,buy,", r"line 2: column 'weight' holds None"),
        ({}, "u0,i1,1,buy,nan", r"line 2: column 'weight' holds 'nan'"),
        ({}, "u0,i1,1,buy,inf", r"line 2: column 'weight' holds 'inf'"),
        ({}, "u0,i1,1,buy,much", r"line 2: column 'weight' holds 'much'"),
    ],
)
def test_what_is_wrong_is_told(config, tmp_path, fields, row, told):
    config.data.update(fields)
    path = tmp_path / "raw" / "interactions.csv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *([row] if row else []), *lines]) + "\n")
    with pytest.raises(UserError, match=told):
        prepare(config.data)


def test_a_source_without_events_says_so(config):
    config.data.source = "yelp"
    with pytest.raises(UserError, match=r"'yelp' has no event of interactions; these have: .*csv"):
        prepare(config.data)


def test_each_purchase_follows_a_view(tmp_path):
    """The gate learns from views then: of no purchase is the item new."""
    users = [
        [
            (10 * n + k, item, kind)
            for n, item in enumerate(range(u, u + 5))
            for k, kind in ((0, 1), (5, 3))
        ]
        for u in range(20)
    ]
    items = np.array([1 + x[1] for own in users for x in own], np.int32)
    minutes = np.array([x[0] for own in users for x in own], np.int32)
    events = np.array([{1: 2, 3: 3}[x[2]] for own in users for x in own], np.int32)
    offsets = np.arange(0, items.size + 1, 10)
    store = SequenceStore.in_memory(
        *map(tf.constant, (items, minutes, offsets)), {"event": tf.constant(events)}, PREDICTED
    )
    assert repeated_share(store) == 1.0
    config = default_config()
    config.model.update(memory=("co_occurrence",), max_length=12)
    rows = gate_rows(store, config, 30)
    assert len(rows.users)
    for user, label, history in zip(rows.users, rows.labels, rows.items, strict=True):
        assert label not in history
        assert label == items[offsets[user] : offsets[user + 1]][:7].max()
    lent = trained_lengths(store, config) < store.splits.trained
    assert set(rows.users) <= set(np.flatnonzero(lent))


def test_nobody_with_enough_to_predict(config, tmp_path):
    path = tmp_path / "raw" / "interactions.csv"
    lines = path.read_text().replace("buy", "view").splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1].replace("view", "buy")]) + "\n")
    data = prepare(config.data)
    with pytest.raises(UserError, match="No user has 3 interactions that are predicted"):
        open_store(data, config)


@pytest.mark.parametrize(
    ("size", "file", "other", "expected"),
    [
        ("100k", "u.data", ("\t3\t", "\t4\t"), ("3", "4")),
        ("1m", "ratings.dat", ("::3::", "::4::"), ("3", "4")),
        ("20m", "ratings.csv", (",3.5,", ",4.0,"), ("3.5", "4")),
    ],
)
def test_events_of_movielens_are_its_ratings(tmp_path, size, file, other, expected):
    config = write_layout(f"ml-{size}", tmp_path / "raw")
    path = tmp_path / "raw" / file
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-20], *(x.replace(*other) for x in lines[-20:])]) + "\n")
    config.data.update(cache_dir=str(tmp_path / "cache"), target_events=("4",))
    data = prepare(config.data)
    assert data.events == expected and 10 < data.report["events"]["4"] <= 20
