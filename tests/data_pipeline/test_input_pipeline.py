"""Batches are pure functions of (seed, epoch, step), and windows are what SPEC says."""

import itertools
import math

import numpy as np
import pytest

from data_pipeline.input_pipeline import EvalBatches, TrainBatches, excluded_classes
from data_pipeline.prepare import PreparedData
from data_pipeline.tensorflow_cpu import tf


def prepared(*sequences):
    offsets = np.cumsum([0, *map(len, sequences)])
    num_items = max(map(max, sequences))
    names = [f"i{i}" for i in range(1, num_items + 1)]
    return PreparedData(
        key="test",
        items=tf.constant(np.concatenate(sequences), tf.int32),
        offsets=tf.constant(offsets, tf.int64),
        user_ids=[f"u{u}" for u in range(len(sequences))],
        item_ids=names,
        titles=names,
        texts=names,
        report={},
    )


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
    batches = train_batches(data, batch_size=3000, max_length=3, reorder_rate=0.5)
    batch = next(batches.iterate(0))
    np.testing.assert_array_equal(batch["labels"][:, :-1], batch["item_sequence"][:, 1:])
    windows = np.column_stack([batch["item_sequence"], batch["labels"][:, -1]])
    for length in (2, 3, 4):
        rows = windows[(windows > 0).sum(axis=1) == length]
        assert len(rows) == 1000
        assert not rows[:, : 4 - length].any()  # padding stays on the left
        np.testing.assert_array_equal(np.sort(rows[:, 4 - length :]), [range(1, length + 1)] * 1000)
        # A reordered window is in its own order once in length! times.
        orders, counts = np.unique(rows, axis=0, return_counts=True)
        permutations = math.factorial(length)
        expected = np.full(permutations, 500 / permutations)
        expected[0] += 500
        assert len(orders) == permutations and (np.diff(orders[0][4 - length :]) == 1).all()
        np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(1000 / permutations))


def test_reordering_depends_on_seed_and_step_alone():
    def stream(start, **changes):
        options = {"batch_size": 8, "reorder_rate": 1.0} | changes
        return train_batches(prepared(*[range(1, 9)] * 8), **options).iterate(start)

    whole = list(itertools.islice(stream(0), 3))
    np.testing.assert_array_equal(next(stream(2))["labels"], whole[2]["labels"])
    for other in (whole[1], next(stream(0, seed=1)), next(stream(0, reorder_rate=0.0))):
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
                    excluded[excluded >= 0].tolist(),
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


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7])
def test_every_user_is_evaluated_once_whatever_the_batch_size(batch_size):
    assert rows_of(eval_batches("test", batch_size=batch_size)) == rows_of(eval_batches("test"))


def test_excluded_classes_equal_a_loop_over_sets():
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, 30)
    items = rng.integers(1, 12, lengths.sum()).astype(np.int32)
    starts = np.cumsum(lengths) - lengths
    ends = starts + lengths - 1
    with_padding = rng.random(30) < 0.5
    classes, offsets = excluded_classes(items, starts, ends, with_padding)
    for user in range(30):
        expected = set(items[starts[user] : ends[user]].tolist()) - {int(items[ends[user]])}
        expected |= {0} if with_padding[user] else set()
        assert classes[offsets[user] : offsets[user + 1]].tolist() == sorted(expected)
