"""InfoNCE terms against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tssr_jax.losses.contrastive import item_contrast, pool, user_contrast


def cross_entropy(scores, target):
    return np.log(np.sum(np.exp(scores))) - scores[target]


def test_pool_over_valid_positions_ignores_padding():
    states = jnp.array([[[100.0, 100.0], [1.0, 2.0], [3.0, 6.0]]])
    sequence = jnp.array([[0, 5, 7]])
    np.testing.assert_allclose(pool(states, sequence, valid_positions=True), [[2.0, 4.0]])
    np.testing.assert_allclose(pool(states, sequence, valid_positions=False), [[104 / 3, 36.0]])


def test_pool_of_an_empty_sequence_is_zero():
    states = jnp.ones((1, 3, 2))
    assert not pool(states, jnp.zeros((1, 3), jnp.int32), valid_positions=True).any()


def test_user_grained_by_hand():
    # Cosines: row 0 with (1, 0), row 1 with (0, 1); the lengths of the vectors do not matter.
    anchors = jnp.array([[3.0, 0.0], [2.0, 2.0]])
    others = jnp.array([[5.0, 0.0], [0.0, 0.1]])
    term = user_contrast(anchors, others, jnp.array([True, True]), temperature=0.5)
    expected = cross_entropy(np.array([2.0, 0.0]), 0) + np.log(2)  # row 1 is as near to both
    np.testing.assert_allclose(term.sum, expected, rtol=1e-6)
    assert term.weight == 2


def test_user_grained_leaves_out_rows_that_fill_the_batch():
    key = jax.random.key(0)
    anchors, others = jax.random.normal(key, (2, 4, 8))
    real = jnp.array([True, True, True, False])
    filled = user_contrast(anchors, others, real, temperature=0.2)
    alone = user_contrast(anchors[:3], others[:3], real[:3], temperature=0.2)
    np.testing.assert_allclose(filled.sum, alone.sum, rtol=1e-6)
    assert filled.weight == alone.weight == 3


def test_user_grained_has_finite_gradients_at_zero():
    zero, others = jnp.zeros((2, 3)), jnp.ones((2, 3))
    rows = jnp.array([True, True])
    grad = jax.grad(lambda x: user_contrast(x, others, rows, temperature=0.2).sum)(zero)
    assert np.isfinite(grad).all()


# Two users, three positions; the last padding position of user 1 is position 0.
SEQUENCE = jnp.array([[4, 5, 6], [0, 5, 7]])
STATES = jnp.array([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]], [[2.0, 1.0], [1.0, 1.0], [9.0, 9.0]]])
EMBEDDINGS = jnp.array([[[9.0, 9.0], [1.0, 2.0], [0.5, 0.0]], [[9.0, 9.0], [1.0, 2.0], [0.0, 3.0]]])
# Scores of position t against the items at t + 1, row user, column user.
AT_0 = np.array([[1.0, 1.0], [4.0, 4.0]])
AT_1 = np.array([[0.0, 3.0], [0.5, 3.0]])


@pytest.mark.parametrize("valid_positions_only", [True, False])
@pytest.mark.parametrize("mask_false_negatives", [True, False])
def test_item_grained_by_hand(valid_positions_only, mask_false_negatives):
    term = item_contrast(
        STATES,
        EMBEDDINGS,
        SEQUENCE,
        valid_positions_only=valid_positions_only,
        mask_false_negatives=mask_false_negatives,
    )
    expected = cross_entropy(AT_1[0], 0) + cross_entropy(AT_1[1], 1)
    # At t = 0 both targets are item 5: masked, the only column left is the target itself.
    rows = 1 if valid_positions_only else 2
    expected += 0.0 if mask_false_negatives else rows * np.log(2)
    np.testing.assert_allclose(term.sum, expected, rtol=1e-6)
    assert term.weight == 2 + rows


def test_item_grained_ignores_columns_without_an_item():
    sequence = jnp.array([[4, 5], [0, 0]])
    states, embeddings = jax.random.normal(jax.random.key(1), (2, 2, 2, 3))
    term = item_contrast(
        states, embeddings, sequence, valid_positions_only=True, mask_false_negatives=True
    )
    np.testing.assert_allclose(term.sum, 0.0, atol=1e-6)  # one column: nothing to choose from
    assert term.weight == 1
