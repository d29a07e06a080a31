"""Packed windows: every token once, windows apart, the same losses and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.model_losses import loss_terms, term_weights
from tests.support.small_model import with_attention
from tssr_jax.config import default
from tssr_jax.data_pipeline.packing import pack, packed_rows
from tssr_jax.losses.objective import total_loss
from tssr_jax.models.apply import encode
from tssr_jax.models.attention import packed_mask
from tssr_jax.models.init import init_params, make_model
from tssr_jax.parallel.catalogue import Catalogue

LENGTH = 6


def windows_of(sizes, seed=0, num_items=30):
    rng = np.random.default_rng(seed)
    windows = rng.integers(1, num_items + 1, (len(sizes), LENGTH + 1)).astype(np.int32)
    windows[np.arange(LENGTH + 1) < LENGTH - np.array(sizes)[:, None]] = 0
    windows[np.array(sizes) == 0] = 0
    return windows


def test_packing_by_hand():
    windows = np.array([[0, 0, 7], [4, 5, 6], [0, 8, 9], [0, 0, 0]], np.int32)
    packed = pack(windows, np.array([1, 3, 2, 0]), num_parts=1)
    assert packed["items"].tolist() == [[4, 5, 6], [8, 9, 7]]
    assert packed["segments"].tolist() == [[2, 2, 2], [3, 3, 1]]
    assert packed["positions"].tolist() == [[0, 1, 2], [1, 2, 2]]
    assert packed["places"].tolist() == [[6, 6, 5], [0, 1, 2], [6, 3, 4], [6, 6, 6]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, LENGTH), min_size=8, max_size=8), st.sampled_from([1, 2, 4]))
def test_every_token_has_a_place_of_its_own(sizes, parts):
    windows = windows_of(sizes)[:, :LENGTH]
    packed = pack(windows, np.array(sizes), parts)
    rows = packed["items"].shape[0] // parts
    assert rows <= 8 // parts
    for part in range(parts):
        own = slice(part * 8 // parts, (part + 1) * 8 // parts)
        mine = slice(part * rows, (part + 1) * rows)
        for name, values in (
            ("items", windows[own]),
            ("positions", np.broadcast_to(np.arange(LENGTH), windows[own].shape)),
            ("segments", np.broadcast_to(1 + np.arange(8)[own, None], windows[own].shape)),
        ):
            flat = np.append(packed[name][mine].reshape(-1), 0)
            expected = np.where(windows[own] > 0, values, 0)
            np.testing.assert_array_equal(flat[packed["places"][own]], expected)
        used = packed["places"][own][windows[own] > 0]
        assert len(set(used.tolist())) == used.size == (packed["segments"][mine] > 0).sum()


def test_processes_pack_their_parts_as_one_would():
    sizes = [3, 1, 6, 2, 1, 1, 0, 1]
    windows = windows_of(sizes)[:, :LENGTH]
    whole = pack(windows, np.array(sizes), 4)
    second = pack(windows[4:], np.array(sizes), 4, first_part=2)
    rows = whole["items"].shape[0] // 2
    np.testing.assert_array_equal(second["items"], whole["items"][rows:])
    np.testing.assert_array_equal(second["places"], whole["places"][4:])


def test_a_part_has_the_first_number_of_rows_that_is_enough():
    windows = np.array([[0, 0, 7], [4, 5, 6], [0, 8, 9], [0, 0, 0]], np.int32)
    sizes = np.array([1, 3, 2, 0])
    for numbers, rows in ((None, 2), ([1, 2, 3], 2), ([1, 3], 3), ([1], 4)):
        packed = pack(windows, sizes, num_parts=1, numbers=numbers)
        assert packed["items"].shape == (rows, 3)
        assert packed["items"][:2].tolist() == [[4, 5, 6], [8, 9, 7]]
        assert not packed["segments"][2:].any()
        assert packed["places"][3].tolist() == [3 * rows] * 3


@pytest.mark.parametrize("share", [8, 64, 500])
def test_nearly_all_batches_have_one_of_two_numbers_of_rows(share):
    rng = np.random.default_rng(0)
    sizes = np.minimum(rng.geometric(0.1, 5_000), 50)
    found = packed_rows(sizes, share, 50, seed=3)
    assert found == packed_rows(sizes, share, 50, seed=3)
    windows, alone, both = np.zeros((share, 50), np.int32), [], []
    for _ in range(300):
        own = rng.choice(sizes, share, replace=False)
        needed = len(pack(windows, own, 1)["items"])
        alone.append(len(pack(windows, own, 1, numbers=[found.most])["items"]))
        both.append(len(pack(windows, own, 1, numbers=found)["items"]))
        assert needed <= both[-1] <= alone[-1]
    assert set(alone) == {found.most} and set(both) <= set(found)
    assert np.mean(both) <= np.mean(alone)
    # Of one size: all batches are alike.
    assert packed_rows(np.full(10, 50), share, 50, seed=0) == (share, share)


def test_mask_by_hand():
    mask = packed_mask(jnp.array([[1, 1, 2, 0]]))
    expected = [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, False],
    ]
    np.testing.assert_array_equal(mask[0], expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"streams": ("id", "content")},
        {"streams": ("id",)},
        {"streams": ("content",)},
        {"mixing": "experts", "head": "tied", "id_reads_content": True, "content_hidden": 4},
    ],
    ids=str,
)
def test_losses_and_gradients_are_those_of_the_unpacked_windows(fields):
    config = default.get_config()
    config.model.update(d_model=8, d_ffn=16, num_heads=2, num_cross_layers=2, max_length=LENGTH)
    config.model.update(fields)
    sizes = [6, 1, 2, 3, 1, 0, 4, 2]
    windows = windows_of(sizes)
    features = jnp.asarray(np.random.default_rng(1).normal(size=(31, 5)), jnp.float32)
    model = make_model(config, Catalogue(30))
    params = init_params(model, {"text": features.shape[1]}, seed=0)
    # Residual scalars start at 1e-8: without larger ones attention would hardly show.
    params = with_attention(params, 0.7)
    batch = {
        "item_sequence": jnp.asarray(windows[:, :-1]),
        "labels": jnp.asarray(windows[:, 1:]),
        "row_mask": jnp.asarray(sizes) > 0,
    }
    packed = pack(windows[:, :-1], np.array(sizes), 1)
    assert packed["items"].shape[0] < len(sizes) // 2 + 1

    def loss(params, packed):
        outputs = encode(model, params, batch["item_sequence"], features, packed)
        terms = loss_terms(model, params, outputs, batch, config, features=features)
        return total_loss(terms, term_weights(config)), terms

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, terms), grads = run(params, None)
    (packed_value, packed_terms), packed_grads = run(params, packed)
    np.testing.assert_allclose(packed_value, value, rtol=1e-5)
    for name, term in terms.items():
        np.testing.assert_allclose(packed_terms[name].sum, term.sum, rtol=1e-5)
        assert packed_terms[name].weight == term.weight > 0
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))

    def close(path, packed_grad, grad):
        np.testing.assert_allclose(
            packed_grad, grad, rtol=1e-4, atol=1e-6 * scale, err_msg=str(path)
        )

    jax.tree_util.tree_map_with_path(close, packed_grads, grads)
