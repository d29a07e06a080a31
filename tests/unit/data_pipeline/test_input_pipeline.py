"""Batches are pure functions of (seed, epoch, step), and windows are those of leave-one-out."""

import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import csv
from tests.support.raw_data import write_csv
from tssr_jax.config import default
from tssr_jax.data_pipeline import builder, store
from tssr_jax.data_pipeline.eval_batches import EvalBatches, excluded_classes
from tssr_jax.data_pipeline.input_pipeline import Cut, TrainBatches, make_train_batches
from tssr_jax.data_pipeline.prepare import prepare
from tssr_jax.data_pipeline.store import SequenceStore, open_store
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.data_pipeline.windows import reorder
from tssr_jax.errors import UserError


def prepared(*sequences):
    offsets = np.cumsum([0, *map(len, sequences)])
    items = np.concatenate(sequences).astype(np.int32)
    # An item's time is a function of the item, so that tests see whether they stay together.
    return SequenceStore.in_memory(*map(tf.constant, (items, time_of(items), offsets)))


def time_of(items):
    return np.where(items > 0, 1000 + 10 * items, 0)


DATA = prepared([1, 2, 3, 4, 5, 6, 7, 8], [4, 3, 2, 1], [5, 6, 7], [8, 7, 6, 5, 4])


def train_batches(data=DATA, batch_size=4, max_length=4, seed=0, **options):
    return TrainBatches(data, batch_size=batch_size, max_length=max_length, seed=seed, **options)


def test_training_windows_by_hand():
    batches = train_batches()
    assert batches.num_users == 3  # the user with three items has nothing to predict
    assert batches.steps_per_epoch == 1
    batch = next(batches.iterate(0))
    rows = sorted(zip(batch["item_sequence"].tolist(), batch["labels"].tolist(), strict=True))
    assert rows == [
        ([0, 0, 0, 0], [0, 0, 0, 0]),  # fills the batch up
        ([0, 0, 0, 4], [0, 0, 4, 3]),
        ([0, 0, 8, 7], [0, 8, 7, 6]),
        ([2, 3, 4, 5], [3, 4, 5, 6]),  # s[-L-3:-3] and s[-L-2:-2] of 1..8
    ]
    assert batch["row_mask"].tolist() == [True, True, True, False]
    assert not batch["item_sequence"][3].any()
    np.testing.assert_array_equal(batch["times"], time_of(batch["item_sequence"]))


def test_packing_nothing_is_told():
    with pytest.raises(UserError, match="No user has the 4 interactions"):
        train_batches(prepared([1, 2, 3], [4, 5, 6]), packing=True)


@given(lengths=st.lists(st.integers(0, 300), max_size=60), room=st.integers(1, 500))
def test_chunks_have_all_rows_and_little_padding(lengths, room):
    data = prepared(*(range(1, length + 1) for length in (*lengths, 3)))
    users = np.arange(len(lengths))[::-1].copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_ITEMS_AT_A_TIME", room)
        chunks = list(data.chunks(users))
    assert sorted(place for some, _ in chunks for place in some.tolist()) == sorted(users.tolist())
    for some, rows in chunks:
        own = [max(1, lengths[user]) for user in users[some]]
        assert max(own) <= 2 * min(own) and (np.diff(some) > 0).all()
        assert len(own) == 1 or len(own) * max(own) <= room
        ends = tf.constant(data.lengths[users[some]])
        assert rows.windows(ends, 1)[:, 0].numpy().tolist() == [lengths[u] for u in users[some]]


def many_users(num_users=37):
    return prepared(*([u + 1, u + 1, u + 1, u + 1] for u in range(num_users)))


def users_of(batch):
    return batch["item_sequence"][batch["row_mask"], -1].tolist()


def test_an_epoch_holds_every_user_once_in_an_order_of_its_own():
    batches = train_batches(many_users(), batch_size=8)
    assert batches.steps_per_epoch == 5
    stream = list(itertools.islice(batches.iterate(0), 10))
    epochs = [
        [user for batch in stream[start : start + 5] for user in users_of(batch)]
        for start in (0, 5)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(1, 38))
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])


def test_a_batch_depends_on_seed_and_step_alone():
    whole = list(itertools.islice(train_batches(many_users(), 8).iterate(0), 9))
    resumed = list(itertools.islice(train_batches(many_users(), 8).iterate(6), 3))
    for expected, batch in zip(whole[6:], resumed, strict=True):
        for name in expected:
            np.testing.assert_array_equal(batch[name], expected[name])
    other = next(train_batches(many_users(), 8, seed=1).iterate(0))
    assert users_of(other) != users_of(whole[0])


def test_reordering_moves_items_and_nothing_else():
    data = prepared(*([1, 2, 3, 4, 5, 6][: 4 + u % 3] for u in range(3000)))
    batches = train_batches(data, batch_size=3000, max_length=3, time_noise=(0.0, 1e6))
    batch = next(batches.iterate(0))
    np.testing.assert_array_equal(batch["labels"][:, :-1], batch["item_sequence"][:, 1:])
    np.testing.assert_array_equal(batch["times"], time_of(batch["item_sequence"]))
    windows = np.column_stack([batch["item_sequence"], batch["labels"][:, -1]])
    for length in (2, 3, 4):
        rows = windows[(windows > 0).sum(axis=1) == length]
        assert len(rows) == 1000
        assert not rows[:, : 4 - length].any()  # padding stays on the left
        np.testing.assert_array_equal(np.sort(rows[:, 4 - length :]), [range(1, length + 1)] * 1000)
        # Half of the windows are in a random order, which is their own once in length! times.
        orders, counts = np.unique(rows, axis=0, return_counts=True)
        permutations = math.factorial(length)
        expected = np.full(permutations, 500 / permutations)
        expected[0] += 500
        assert len(orders) == permutations and (np.diff(orders[0][4 - length :]) == 1).all()
        np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(1000 / permutations))


def reordered(times, scales, number=20_000):
    """Places of the items 1, 2, ... of such times, in many draws."""
    items = np.tile(np.arange(1, 1 + len(times), dtype=np.int32), (number, 1))
    draws = np.random.default_rng(0).random((number, 1 + len(times)))
    minutes = np.tile(np.array(times, np.int32), (number, 1))
    found, own = reorder(scales, tf.constant(draws), tf.constant(items), tf.constant(minutes))
    np.testing.assert_array_equal(own, np.array(times)[found.numpy() - 1])
    return found.numpy().argsort(axis=1)


def test_items_of_one_minute_are_in_a_random_order_without_noise():
    places = reordered([7, 8, 8, 8, 9], (0.0,))
    assert (places[:, 0] == 0).all() and (places[:, 4] == 4).all()
    orders, counts = np.unique(places[:, 1:4], axis=0, return_counts=True)
    assert len(orders) == 6
    np.testing.assert_allclose(counts, 20_000 / 6, atol=5 * np.sqrt(20_000 / 6))


def test_noise_reorders_what_is_near_in_time():
    # The difference of two logistic variables of scale s exceeds x with probability
    # (e^-y (y - 1 + e^-y)) / (1 - e^-y)^2, y = x / s.
    y = 2.0 / (np.sqrt(3) / np.pi)
    probability = np.exp(-y) * (y - 1 + np.exp(-y)) / (1 - np.exp(-y)) ** 2
    places = reordered([0, 2 * 1440, 10**6], (1.0,))
    swapped = (places[:, 0] > places[:, 1]).mean()
    np.testing.assert_allclose(swapped, probability, atol=0.01)
    assert (places[:, 2] == 2).all()
    # Each window has one of the scales.
    places = reordered([0, 2 * 1440, 10**6], (0.0, 1.0))
    np.testing.assert_allclose((places[:, 0] > places[:, 1]).mean(), probability / 2, atol=0.01)


def test_reordering_depends_on_seed_and_step_alone():
    def stream(start, **changes):
        options = {"batch_size": 8, "time_noise": (1e6,)} | changes
        return train_batches(prepared(*[range(1, 9)] * 8), **options).iterate(start)

    whole = list(itertools.islice(stream(0), 3))
    np.testing.assert_array_equal(next(stream(2))["labels"], whole[2]["labels"])
    for other in (whole[1], next(stream(0, seed=1)), next(stream(0, time_noise=()))):
        assert (other["labels"] != whole[0]["labels"]).any()


def eval_batches(split, **changes):
    arguments = {
        "batch_size": 3,
        "max_length": 4,
        "full_history": True,
        "exclude_padding_class": True,
    }
    return EvalBatches(DATA, split, **(arguments | changes))


def rows_of(batches):
    rows = []
    for batch in batches:
        for i in np.flatnonzero(batch["row_mask"]):
            excluded = batch["excluded"][i]
            rows.append(
                (
                    batch["item_sequence"][i].tolist(),
                    int(batch["answers"][i]),
                    sorted(excluded[excluded >= 0].tolist()),
                )
            )
    return rows


def test_evaluation_by_hand():
    assert rows_of(eval_batches("validation")) == [
        ([3, 4, 5, 6], 7, [0, 1, 2, 3, 4, 5, 6]),
        ([0, 0, 4, 3], 2, [0, 3, 4]),
        ([0, 0, 0, 5], 6, [0, 5]),
        ([0, 8, 7, 6], 5, [0, 6, 7, 8]),
    ]
    assert rows_of(eval_batches("test")) == [
        ([4, 5, 6, 7], 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        ([0, 4, 3, 2], 1, [0, 2, 3, 4]),
        ([0, 0, 5, 6], 7, [0, 5, 6]),
        ([8, 7, 6, 5], 4, [0, 5, 6, 7, 8]),
    ]


def test_reference_exclusions_are_the_window_and_its_padding():
    batches = eval_batches("test", full_history=False, exclude_padding_class=False)
    assert [excluded for _, _, excluded in rows_of(batches)] == [
        [4, 5, 6, 7],  # a full window: class 0 competes
        [0, 2, 3, 4],
        [0, 5, 6],
        [5, 6, 7, 8],
    ]


def test_an_answer_in_its_own_history_still_competes():
    data = prepared([1, 2, 1, 3, 1])
    batches = EvalBatches(
        data, "test", batch_size=1, max_length=4, full_history=True, exclude_padding_class=True
    )
    assert rows_of(batches) == [([1, 2, 1, 3], 1, [0, 2, 3])]
    assert [batch["missed"].tolist() for batch in batches] == [[True]]
    kept = EvalBatches(
        data,
        "test",
        batch_size=1,
        max_length=4,
        full_history=True,
        exclude_padding_class=True,
        keep_seen=True,
    )
    assert rows_of(kept) == [([1, 2, 1, 3], 1, [0])]
    assert [batch["missed"].tolist() for batch in kept] == [[False]]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7])
def test_every_user_is_evaluated_once_whatever_the_batch_size(batch_size):
    assert rows_of(eval_batches("test", batch_size=batch_size)) == rows_of(eval_batches("test"))


def test_many_batches_come_by_length_in_narrow_windows():
    lengths = [5, 21, 4, 12] * 10
    data = prepared(*(range(1, length + 1) for length in lengths))
    arguments = {"max_length": 12, "full_history": True, "exclude_padding_class": True}
    few, many = (EvalBatches(data, "test", batch_size=n, **arguments) for n in (20, 2))
    assert few.order.tolist() == list(range(40))
    assert [lengths[user] for user in many.order] == sorted(lengths)
    np.testing.assert_array_equal(few.answers(), many.answers())
    # Histories of 3, 4, 11 and 20 items, in windows of a quarter of 12, a half, and 12.
    widths = [batch["item_sequence"].shape[1] for batch in many]
    assert widths == [3] * 5 + [6] * 5 + [12] * 10
    assert all(batch["times"].shape == batch["item_sequence"].shape for batch in many)
    wide = rows_of(few)
    for user, (items, *rest) in zip(many.order, rows_of(many), strict=True):
        assert [0] * (12 - len(items)) + items == wide[user][0] and rest == list(wide[user][1:])


def test_one_long_history_widens_its_own_batch_only():
    lengths = [5, 200, *[12] * 30]
    data = prepared(*(range(1, length + 1) for length in lengths))
    arguments = {"max_length": 4, "full_history": True, "exclude_padding_class": True}
    few, many = (EvalBatches(data, "test", batch_size=n, **arguments) for n in (32, 2))
    widths = [batch["excluded"].shape[1] for batch in many]
    assert widths == [33] * 15 + [200]  # 8 windows, or the longest history, and the padding class
    wide = rows_of(few)
    for user, (_, *rest) in zip(many.order, rows_of(many), strict=True):
        assert rest == list(wide[user][1:])


def test_excluded_classes_equal_a_loop_over_sets():
    rng = np.random.default_rng(0)
    seen = rng.integers(1, 12, (30, 8)).astype(np.int32)
    seen[np.arange(8) < rng.integers(0, 9, (30, 1))] = 0
    answers = rng.integers(1, 12, 30).astype(np.int32)
    with_padding = rng.random(30) < 0.5
    excluded = excluded_classes(tf.constant(seen), answers, with_padding).numpy()
    for user, classes in enumerate(excluded):
        expected = set(seen[user].tolist()) - {0, int(answers[user])}
        expected |= {0} if with_padding[user] else set()
        assert sorted(classes[classes >= 0].tolist()) == sorted(expected)


def windows_of(**options):
    batches = train_batches(batch_size=32, **options)
    assert batches.steps_per_epoch == 1
    batch = next(batches.iterate(0))
    rows = zip(batch["item_sequence"].tolist(), batch["labels"].tolist(), strict=True)
    found = sorted(row for row, real in zip(rows, batch["row_mask"], strict=True) if real)
    assert len(found) == batches.num_windows
    return found


def test_strided_windows_by_hand():
    """Training sequences 1..6, 4 3, and 8 7 6; windows of 2 + 1 items, 2 apart."""
    assert windows_of(max_length=2, windows="strided", window_stride=2) == [
        ([0, 1], [1, 2]),  # the second item alone would be left over: shorter, but there
        ([0, 4], [4, 3]),
        ([2, 3], [3, 4]),
        ([4, 5], [5, 6]),
        ([8, 7], [7, 6]),
    ]


def test_strided_windows_hold_every_item_after_the_first_as_a_label():
    store = prepared(*(range(1, n) for n in range(6, 60)))
    for stride in (1, 3, 5):
        batches = train_batches(store, 4096, max_length=5, windows="strided", window_stride=stride)
        batch = next(batches.iterate(0))
        for end in range(6, 60):  # users' sequences end at end - 1, training at end - 3
            own = (batch["labels"].max(axis=1) <= end - 3) & batch["row_mask"]
            counted = (batch["item_sequence"][own] > 0) & (batch["labels"][own] > 0)
            labels = batch["labels"][own][counted]
            assert set(labels.tolist()) == set(range(2, end - 2))


@pytest.mark.parametrize(
    ("setting", "options"),
    [
        ({"train.batch_size": 2}, {"batch_size": 2}),
        ({"model.max_length": 3}, {"max_length": 3}),
        ({"seed": 5}, {"seed": 5}),
        (
            {"train.windows": "strided", "train.window_stride": 3},
            {"windows": "strided", "window_stride": 3},
        ),
        ({"train.time_noise": (1e6,)}, {"time_noise": (1e6,)}),
        ({"train.packing": True}, {"packing": True}),
    ],
    ids=str,
)
def test_batches_are_as_the_configuration_says(setting, options):
    config = default.get_config()
    config.model.max_length = 4
    config.train.update(batch_size=4, time_noise=())
    first = next(iter(make_train_batches(DATA, config).iterate(0)))
    config.update_from_flattened_dict(setting)
    batch = next(iter(make_train_batches(DATA, config).iterate(0)))
    expected = next(iter(train_batches(**options).iterate(0)))
    jax.tree.map(np.testing.assert_array_equal, batch, expected)
    assert batch.keys() != first.keys() or not np.array_equal(
        batch["item_sequence"], first["item_sequence"]
    )


def assert_same_batches(first, second, number=4):
    for expected, batch in zip(
        itertools.islice(first, number), itertools.islice(second, number), strict=True
    ):
        for (path, one), (_, other) in zip(
            jax.tree_util.tree_leaves_with_path(expected),
            jax.tree_util.tree_leaves_with_path(batch),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other, err_msg=str(path))


@pytest.fixture(name="stores")
def fixture_stores(tmp_path, monkeypatch):
    """The same data in memory and on disk, in several shards."""
    monkeypatch.setattr(builder, "USERS_PER_SHARD", 7)
    config = csv.get_config(str(write_csv(tmp_path / "raw")))
    config.data.cache_dir = str(tmp_path / "cache")
    prepared_data = prepare(config.data)
    assert len(list(prepared_data.folder.glob("users/*/*.tfrecord-*"))) == 6
    in_memory = open_store(prepared_data, config)
    config.data.in_memory_gib = 0.0
    return in_memory, open_store(prepared_data, config)


@pytest.mark.parametrize("windows", ["last", "strided"])
def test_batches_from_disk_are_those_from_memory(stores, windows):
    options = {"batch_size": 8, "max_length": 4, "seed": 3, "windows": windows}
    options |= {"window_stride": 2, "time_noise": (0.0, 7.0), "packing": True}
    memory, disk = (TrainBatches(store, **options) for store in stores)
    assert_same_batches(memory.iterate(2), disk.iterate(2), memory.steps_per_epoch + 1)
    memory, disk = (
        EvalBatches(
            store, "test", batch_size=9, max_length=4, full_history=True, exclude_padding_class=True
        )
        for store in stores
    )
    assert_same_batches(iter(memory), iter(disk), memory.num_batches)


@pytest.mark.parametrize("packing", [False, True])
def test_processes_read_disjoint_rows_whose_union_is_the_batch(stores, packing):
    def batches(store, cut=None):
        return TrainBatches(
            store, batch_size=8, max_length=4, seed=0, packing=packing, cut=cut
        ).iterate(0)

    whole = batches(stores[0], Cut(8, num_devices=4))
    parts = [batches(stores[1], Cut(8, slice(4 * i, 4 * i + 4), 4)) for i in range(2)]
    for _ in range(5):
        expected, *own = (next(stream) for stream in (whole, *parts))
        joined = jax.tree.map(lambda *x: np.concatenate(x), *own)
        if packing:  # which window it is counts from the process's first
            joined["packed"]["segments"] = expected["packed"]["segments"]
        jax.tree.map(np.testing.assert_array_equal, joined, expected)


def test_reading_from_disk_holds_no_items_in_memory(stores):
    """What the reader keeps is a few numbers for each user."""
    users = tf.constant([39, 0, 7], tf.int64)
    rows = stores[1].rows(users)
    expected = stores[0].rows(users)
    ends = tf.constant(stores[0].lengths)[:: 40 // 3][:3]
    np.testing.assert_array_equal(rows.windows(ends, 5), expected.windows(ends, 5))
    np.testing.assert_array_equal(rows.times(ends, 5), expected.times(ends, 5))
    assert rows.columns["items"].shape[0] == sum(stores[0].lengths[[39, 0, 7]]) + 1


def test_a_cut_shard_is_an_error(stores, tmp_path):
    (path,) = (tmp_path / "cache").glob("datasets/*/users/*/*.tfrecord-00005*")
    path.write_bytes(path.read_bytes()[:-20])
    batches = TrainBatches(stores[1], batch_size=40, max_length=4, seed=0).iterate(0)
    with pytest.raises(
        UserError, match=r"users is damaged: record 39 can't be read\. Delete the folder"
    ):
        next(batches)
