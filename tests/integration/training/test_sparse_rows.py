"""A step on the rows it touches against a dense step, and on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tssr_jax.config import default
from tssr_jax.data_pipeline.packing import pack
from tssr_jax.losses.drawn_items import cumulative_chances
from tssr_jax.models.content import CONTENT_LAYOUT, Content
from tssr_jax.models.init import init_params, make_model
from tssr_jax.parallel import sharding
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.devices import CLASSES, ROWS, Devices
from tssr_jax.training.optimizer import make_optimizer
from tssr_jax.training.sparse_rows import HEAD, ITEM_TABLE, sparse_rows
from tssr_jax.training.state import create_train_state
from tssr_jax.training.step import make_train_step

NUM_ITEMS, BATCH, LENGTH = 60, 8, 4
FIELDS = {
    "full": {},
    "sampled": {"loss.next_item": "sampled", "loss.num_negatives": 7},
    "content": {
        "loss.next_item": "sampled",
        "loss.num_negatives": 7,
        "model.head": "content",
        "model.id_dropout": 0.2,
    },
    "tied": {"loss.next_item": "sampled", "loss.num_negatives": 7, "model.head": "tied"},
    "experts": {
        "loss.next_item": "sampled",
        "loss.num_negatives": 7,
        "model.head": "tied",
        "model.mixing": "experts",
        "model.content_hidden": 5,
    },
}


def make_batch(seed, items):
    windows = np.random.default_rng(seed).choice(items, (BATCH, LENGTH + 1)).astype(np.int32)
    windows[0, :3] = 0
    windows[1] = 0
    return {
        "item_sequence": windows[:, :-1],
        "labels": windows[:, 1:],
        "row_mask": np.arange(BATCH) != 1,
    }


def make(kind, *, lazy, devices=None, optimizer=None, dropout_rate=0.1):
    """The compiled step, the state before it, and what it reads beside the batch."""
    config = default.get_config()
    config.model.update(d_model=8, d_ffn=8, num_heads=2, num_cross_layers=1, max_length=LENGTH)
    config.model.dropout_rate = dropout_rate
    config.update_from_flattened_dict(FIELDS[kind])
    config.optimizer.update(lazy_rows=lazy, weight_decay=0.1, clip_norm=1.0, ema_decay=0.9)
    devices = devices or Devices("shard_map", 1)
    model = make_model(config, devices.catalogue(NUM_ITEMS), devices.rows_axis)
    rng = np.random.default_rng(1)
    counts = np.arange(NUM_ITEMS + 1) - 1
    content = Content({"text": rng.normal(size=(NUM_ITEMS + 1, 6)).astype(np.float32)})
    if kind in {"content", "tied", "experts"}:
        known = np.arange(NUM_ITEMS + 1) % 20 != 3
        content = content.replace(known=known)
        counts[~known] = -1
    padding = model.classes.padded_classes - NUM_ITEMS - 1
    content = jax.tree.map(
        lambda x: devices.place(np.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))), CLASSES),
        content,
    )
    if kind in {"sampled", "content", "tied", "experts"}:
        content = content.replace(chances=devices.place(cumulative_chances(counts + 1)))
    # With this eps a gradient that is rounding only is no step of full size.
    optimizer = optimizer or make_optimizer(config.optimizer, model.classes, eps=1e-3)

    def start():
        return create_train_state(init_params(model, {"text": 6}, 0), optimizer, config)

    layout = sharding.layout(jax.eval_shape(start))
    step = devices.run(
        make_train_step(model, optimizer, config),
        inputs=(layout, ROWS, CONTENT_LAYOUT),
        output=layout,
    )
    return step, devices.build(start, layout), content


def assert_close(tree, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6), tree, expected
    )


@pytest.mark.parametrize("kind", ["full", "tied"])
def test_packed_rows_are_those_of_the_windows(kind):
    items = np.array([i for i in range(1, NUM_ITEMS + 1) if i % 20 != 3])
    batch = make_batch(0, items)
    sizes = (batch["item_sequence"] > 0).sum(axis=1)
    packed = {**batch, "packed": pack(batch["item_sequence"], sizes, 1)}
    step, state, content = make(kind, lazy=True, dropout_rate=0.0)
    of_packed, of_windows = step(state, packed, content), step(state, batch, content)
    assert_close(of_packed.params, of_windows.params)
    assert_close(of_packed.loss_sums, of_windows.loss_sums)
    before, after = (x.params[ITEM_TABLE]["embedding"] for x in (state, of_windows))
    assert (before != after).any()


@pytest.mark.parametrize("kind", FIELDS)
def test_rows_of_the_batch_move_as_in_a_dense_step_and_others_stay(kind):
    """The second step's items are others than the first's: theirs have moments, and stay."""
    items = np.array([i for i in range(1, NUM_ITEMS + 1) if i % 20 != 3])
    first, second = make_batch(0, items[:30]), make_batch(1, items[15:])
    lazy_step, state, content = make(kind, lazy=True)
    dense_step, _, _ = make(kind, lazy=False)
    state = lazy_step(state, first, content)
    lazy, dense = lazy_step(state, second, content), dense_step(state, second, content)

    def parts(tree):
        """Parameters, both moments, whichever have rows; the others."""
        rows, rest = [], []
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            names = sharding.path_names(path)
            dimension = sharding.class_dimension(names)
            cut_down = names[-2:-1] == (ITEM_TABLE,) or kind in {
                "sampled",
                "content",
                "tied",
                "experts",
            }
            if dimension is not None and cut_down:
                rows.append(np.moveaxis(np.asarray(x), dimension, 0))
            else:
                rest.append(x)
        return rows, rest

    (old, _), (new, rest), (wanted, wanted_rest) = (
        parts((s.params, s.opt_state)) for s in (state, lazy, dense)
    )
    assert_close(rest, wanted_rest)
    assert_close(lazy.loss_sums, dense.loss_sums)
    moved = 0
    for before, after, expected in zip(old, new, wanted, strict=True):
        stays = (before == after).reshape(NUM_ITEMS + 1, -1).all(axis=1)
        assert_close(after[~stays], expected[~stays])
        untouched = np.setdiff1d(first["labels"], second["item_sequence"])
        untouched = np.setdiff1d(untouched, second["labels"])
        assert untouched.size
        if kind == "full":
            assert stays[untouched].all()
        touched = np.intersect1d(second["item_sequence"], second["labels"])
        touched = np.setdiff1d(touched, [0])
        # Ids that the step leaves out (a fifth) stay.
        assert stays[touched].mean() <= (0.5 if kind == "content" else 0.0)
        moved += (~stays).sum()
        assert np.abs(expected - before)[untouched].any()  # dense Adam moves these, too
    assert moved > 20


@pytest.mark.parametrize("kind", ["full", "content"])
def test_a_step_that_touches_all_rows_is_the_dense_one(kind):
    items = np.arange(1, 13)
    everything = make_batch(0, items)
    windows = np.resize(np.arange(1, NUM_ITEMS + 1), (BATCH * 2, LENGTH + 1)).astype(np.int32)
    everything |= {
        "item_sequence": windows[:, :-1],
        "labels": windows[:, 1:],
        "row_mask": np.ones(BATCH * 2, bool),
    }
    states = []
    for lazy in (True, False):
        step, state, content = make(kind, lazy=lazy)
        for _ in range(3):
            state = step(state, everything, content)
        states.append(state)
    assert_close(states[0].params, states[1].params)
    assert_close(states[0].average, states[1].average)


@pytest.mark.parametrize(
    ("kind", "way"), [("full", ("pmap", 4)), ("content", ("shard_map", 8))], ids=str
)
def test_several_devices_touch_the_rows_of_all(kind, way):
    # Not Adam: it turns the rounding of a gradient that is zero into steps of full size.
    optimizer, states = optax.sgd(0.1, momentum=0.9), []
    for devices in (Devices("shard_map", 1), Devices(*way)):
        step, state, content = make(kind, lazy=True, devices=devices, optimizer=optimizer)
        for seed in range(3):
            state = step(state, make_batch(seed, np.arange(1, NUM_ITEMS + 1)), content)
        states.append(state)
    assert_close(states[1].params, states[0].params)
    assert_close(states[1].loss_sums, states[0].loss_sums)


@pytest.mark.parametrize(
    ("kind", "way"),
    [("sampled", ("pmap", 4)), ("sampled", ("shard_map", 6, 3)), ("content", ("shard_map", 2, 2))],
    ids=str,
)
def test_drawn_negatives_are_the_same_on_any_number_of_devices(kind, way):
    """Also where the catalogue is cut, in 2 parts and in 3."""
    optimizer, states = optax.sgd(0.1, momentum=0.9), []
    for devices in (Devices("shard_map", 1), Devices(*way)):
        step, state, content = make(kind, lazy=False, devices=devices, optimizer=optimizer)
        for seed in range(3):
            batch = make_batch(seed, np.arange(1, NUM_ITEMS + 1))
            batch = {name: np.concatenate([x, x, x]) for name, x in batch.items()}
            state = step(state, batch, content)
        states.append(jax.tree.map(np.asarray, state))

    def existing(tree):
        def cut(path, x):
            dimension = sharding.class_dimension(sharding.path_names(path))
            return x if dimension is None else np.split(x, [NUM_ITEMS + 1], dimension)[0]

        return jax.tree_util.tree_map_with_path(cut, tree)

    assert_close(existing(states[1].params), states[0].params)
    assert_close(states[1].loss_sums, states[0].loss_sums)


def test_classes_by_hand():
    batch = {"item_sequence": jnp.array([[0, 7, 3]]), "labels": jnp.array([[7, 3, 9]])}
    rows = sparse_rows(batch, jnp.array([4, 9]), (ITEM_TABLE, HEAD), Catalogue(20), None)
    assert rows.classes.tolist() == [0, 3, 4, 7, 9, 26, 27, 28, 29]
    assert rows.catalogue == Catalogue(8)
    own = rows.places_in(batch)
    assert own["item_sequence"].tolist() == [[0, 3, 1]] and own["labels"].tolist() == [[3, 1, 4]]
    table = jnp.arange(21.0)[:, None] * jnp.ones((1, 2))
    params = {ITEM_TABLE: {"embedding": table}, HEAD: {"kernel": table.T}, "x": jnp.ones(3)}
    part = rows.take(params)
    np.testing.assert_array_equal(part[ITEM_TABLE]["embedding"][:, 1], [0, 3, 4, 7, 9, 0, 0, 0, 0])
    new = rows.put(params, jax.tree.map(lambda x: -1 - x, part))
    wanted = np.where(np.isin(np.arange(21), [0, 3, 4, 7, 9]), -1 - np.arange(21), np.arange(21))
    np.testing.assert_array_equal(new[ITEM_TABLE]["embedding"][:, 0], wanted)
    np.testing.assert_array_equal(new[HEAD]["kernel"][1], wanted)
    np.testing.assert_array_equal(new["x"], [-2, -2, -2])
