"""Scalable cross entropy against the whole softmax, and against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.head_inputs import make_inputs
from tssr_jax.losses import sce
from tssr_jax.losses.sce import scalable_next_item_loss
from tssr_jax.models.head import HeadWeights

BATCH, LENGTH, D_MODEL, CLASSES = 4, 5, 4, 30


@pytest.fixture(name="inputs")
def fixture_inputs():
    return make_inputs(batch=BATCH, length=LENGTH, d_model=D_MODEL, classes=CLASSES, counted=0.8)


def by_definition(inputs, key, items_per_bucket):
    """Centres, the largest of each, scores within a bucket, the largest loss of a position."""
    fused, weights, labels, counted = inputs
    x, y = np.asarray(fused).reshape(-1, D_MODEL), np.asarray(labels).reshape(-1)
    counts = np.asarray(counted).reshape(-1)
    kernel, bias = np.asarray(weights.kernel), np.asarray(weights.bias)
    number = 7  # the root of twice 20 positions, rounded up
    centres = (np.asarray(jax.random.normal(key, (number, y.size))) * counts) @ x
    losses = {}
    for centre in centres:
        positions = np.argsort(np.where(counts, -(x @ centre), np.inf), kind="stable")[:number]
        items = 1 + np.argsort(-(centre @ kernel[:, 1:]), kind="stable")[:items_per_bucket]
        for i in positions:
            own = x[i] @ kernel[:, y[i]] + bias[y[i]]
            others = items[items != y[i]]
            scores = x[i] @ kernel[:, others] + bias[others]
            loss = np.log(np.exp(own) + np.exp(scores).sum()) - own
            losses[i] = max(loss, losses.get(i, -np.inf))
    return sum(losses.values()), len(losses)


@pytest.mark.parametrize("scores_per_tile", [1, 60, 2**23])
@pytest.mark.parametrize("items_per_bucket", [1, 6, 29])
def test_value_by_the_definition(inputs, items_per_bucket, scores_per_tile, monkeypatch):
    monkeypatch.setattr(sce, "_SCORES_PER_TILE", scores_per_tile)
    key = jax.random.key(3)
    term = scalable_next_item_loss(
        *inputs, key, items_per_bucket=items_per_bucket, exclude_padding_class=True
    )
    total, number = by_definition(inputs, key, items_per_bucket)
    np.testing.assert_allclose(term.sum, total, rtol=1e-5)
    assert term.weight == number > 1


def test_with_all_items_it_is_the_whole_softmax(inputs):
    """Value and gradient, of the positions that are in a bucket; more items than there are."""
    fused, weights, labels, counted = inputs
    key = jax.random.key(0)

    def ours(fused, weights):
        term = scalable_next_item_loss(
            fused, weights, labels, counted, key,
            items_per_bucket=99, exclude_padding_class=True,
        )  # fmt: skip
        return term.sum, term.weight

    (value, number), grads = jax.value_and_grad(ours, (0, 1), has_aux=True)(fused, weights)
    assert 1 < number < counted.sum()
    used = np.abs(np.asarray(grads[0])).sum(axis=-1) > 0
    assert used.sum() == number

    def whole(fused, weights):
        log_softmax = jax.nn.log_softmax((fused @ weights.kernel + weights.bias)[..., 1:])
        own = jnp.take_along_axis(log_softmax, labels[..., None] - 1, axis=-1)[..., 0]
        return -jnp.where(used, own, 0.0).sum()

    expected, expected_grads = jax.value_and_grad(whole, (0, 1))(fused, weights)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), grads, expected_grads)


def test_items_that_do_not_compete(inputs):
    """A bias of minus infinity: they are in no bucket, and the gradient is finite."""
    fused, weights, labels, counted = inputs
    labels = jnp.where(labels > 9, 9, labels)
    cut = HeadWeights(weights.kernel[:, :10], weights.bias[:10])
    masked = weights._replace(bias=weights.bias.at[10:].set(-jnp.inf))
    values = []
    for own in (cut, masked):

        def total(own, fused):
            return scalable_next_item_loss(
                fused, own, labels, counted, jax.random.key(1),
                items_per_bucket=9, exclude_padding_class=True,
            ).sum  # fmt: skip

        value, gradient = jax.value_and_grad(total)(own, fused)
        assert all(np.isfinite(x).all() for x in gradient)
        values.append(value)
    np.testing.assert_allclose(*values, rtol=1e-6)


def test_nothing_counted_is_a_zero_loss(inputs):
    fused, weights, labels, counted = inputs
    term = scalable_next_item_loss(
        fused, weights, labels, counted & False, jax.random.key(0),
        items_per_bucket=3, exclude_padding_class=True,
    )  # fmt: skip
    assert term.sum == 0 and term.weight == 0
