"""The sampled softmax against the whole one, and against a dense formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.head_inputs import make_inputs
from tssr_jax.losses import sampled
from tssr_jax.losses.drawn_items import DrawnItems, cumulative_chances, draw
from tssr_jax.losses.sampled import sampled_next_item_loss
from tssr_jax.parallel.catalogue import Catalogue

BATCH, LENGTH, D_MODEL, CLASSES = 3, 5, 4, 11
CATALOGUE = Catalogue(CLASSES - 1)


@pytest.fixture(name="inputs")
def fixture_inputs():
    return make_inputs(batch=BATCH, length=LENGTH, d_model=D_MODEL, classes=CLASSES, counted=0.6)


def dense(fused, weights, labels, counted, negatives, importance=None):  # noqa: PLR0917
    """One position and one drawn class after the other."""
    total = 0.0
    for place in zip(*np.nonzero(np.asarray(counted)), strict=True):
        scores = fused[place] @ weights.kernel + weights.bias
        own = scores[labels[place]]
        normaliser = jnp.exp(own)
        for c, log_expected in zip(*map(np.asarray, negatives), strict=True):
            if c != labels[place]:
                normaliser += jnp.exp(scores[c]) / np.exp(log_expected)
        loss = jnp.log(normaliser) - own
        total += loss if importance is None else importance[place] * loss
    return total


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scores_per_tile", [7, 28, 2**21])
def test_value_and_gradients_equal_the_dense_formula(
    inputs, scores_per_tile, weighted, monkeypatch
):
    """Seven draws, some twice, at 1, 4 and all 15 positions at a time."""
    monkeypatch.setattr(sampled, "SCORES_PER_TILE", scores_per_tile)
    fused, weights, labels, counted = inputs
    negatives = DrawnItems(jnp.array([3, 9, 3, 1, 7, 10, 1]), jnp.linspace(-1.0, 2.0, 7))

    importance = jnp.linspace(0.0, 2.0, labels.size).reshape(labels.shape) if weighted else None

    def ours(fused, weights):
        term = sampled_next_item_loss(
            fused,
            weights,
            labels,
            counted,
            negatives,
            importance=importance,
            catalogue=CATALOGUE,
        )
        weight = counted.sum() if importance is None else (counted * importance).sum()
        np.testing.assert_allclose(jax.lax.stop_gradient(term.weight), weight, rtol=1e-6)
        return 1.7 * term.sum

    def expected(fused, weights):
        return 1.7 * dense(fused, weights, labels, counted, negatives, importance)

    value, grads = jax.value_and_grad(ours, (0, 1))(fused, weights)
    wanted, wanted_grads = jax.value_and_grad(expected, (0, 1))(fused, weights)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), grads, wanted_grads)


def test_every_item_once_is_the_whole_softmax(inputs):
    fused, weights, labels, counted = inputs
    negatives = DrawnItems(jnp.arange(1, CLASSES), jnp.zeros(CLASSES - 1))
    term = sampled_next_item_loss(fused, weights, labels, counted, negatives, catalogue=CATALOGUE)
    log_softmax = jax.nn.log_softmax((fused @ weights.kernel + weights.bias)[..., 1:])
    own = jnp.take_along_axis(log_softmax, labels[..., None] - 1, axis=-1)[..., 0]
    np.testing.assert_allclose(term.sum, -own[counted].sum(), rtol=1e-5)
    assert term.weight == counted.sum()


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_normaliser_is_right_on_average(inputs, power):
    """Of one position, over 4,000 steps: within four standard errors."""
    fused, weights, labels, _ = inputs
    fused, labels = fused[:1, :1], labels[:1, :1]
    counts = np.maximum(np.arange(CLASSES) - 1.0, 0.5)
    cumulative = jnp.asarray(cumulative_chances(counts**power * (np.arange(CLASSES) > 0)))
    scores = (fused @ weights.kernel + weights.bias)[0, 0]

    def normaliser(key):
        negatives = draw(cumulative, 5, key)
        counted = jnp.ones((1, 1), bool)
        term = sampled_next_item_loss(
            fused, weights, labels, counted, negatives, catalogue=CATALOGUE
        )
        return jnp.exp(term.sum + scores[labels[0, 0]])

    found = jax.jit(jax.vmap(normaliser))(jax.random.split(jax.random.key(1), 4_000))
    error = found.std() / np.sqrt(found.size)
    assert abs(found.mean() - jnp.exp(scores[1:]).sum()) < 4 * error
    assert error < 0.05 * found.mean()


def test_nothing_counted_is_a_zero_loss(inputs):
    fused, weights, labels, counted = inputs
    negatives = DrawnItems(jnp.array([1, 2]), jnp.zeros(2))
    term = sampled_next_item_loss(
        fused, weights, labels, counted & False, negatives, catalogue=CATALOGUE
    )
    assert term.sum == 0 and term.weight == 0
