"""The tiled cross entropy against the dense formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tssr_jax.losses.next_item import TileSize, next_item_loss
from tssr_jax.models.head import HeadWeights
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.devices import MODEL_AXIS, ROWS, WHOLE, Devices

BATCH, LENGTH, D_MODEL, CLASSES = 3, 5, 4, 11
CATALOGUE = Catalogue(CLASSES - 1)


def dense_loss(  # noqa: PLR0917
    fused, kernel, bias, labels, counted, exclude_padding_class
):
    logits = fused @ kernel + bias
    if exclude_padding_class:
        logits = logits[..., 1:]
        labels = labels - 1
    log_probabilities = jax.nn.log_softmax(logits)
    one_hot = jax.nn.one_hot(labels, logits.shape[-1])
    return -(counted[..., None] * one_hot * log_probabilities).sum()


@pytest.fixture(name="inputs")
def fixture_inputs():
    keys = jax.random.split(jax.random.key(0), 5)
    return (
        jax.random.normal(keys[0], (BATCH, LENGTH, D_MODEL)),
        jax.random.normal(keys[1], (D_MODEL, CLASSES)),
        jax.random.normal(keys[2], (CLASSES,)),
        jax.random.randint(keys[3], (BATCH, LENGTH), 1, CLASSES),
        jax.random.bernoulli(keys[4], 0.6, (BATCH, LENGTH)),
    )


IMPORTANCE = jnp.linspace(0.0, 3.0, BATCH * LENGTH).reshape(BATCH, LENGTH)


@pytest.mark.parametrize("importance", [None, IMPORTANCE], ids=["alike", "weighted"])
@pytest.mark.parametrize("exclude_padding_class", [True, False])
@pytest.mark.parametrize(
    ("tile", "scores"),
    [(1, 99), (4, 99), (5, 99), (15, 999), (512, 999), (4, 4), (4, 12), (15, 60), (5, 50)],
)
def test_value_and_gradients_equal_the_dense_formula(
    inputs, tile, scores, exclude_padding_class, importance
):
    """Also with chunks of 1, 3, 4 and 10 of the 11 classes at a time."""
    *arrays, labels, counted = inputs
    weights = counted if importance is None else counted * importance

    def tiled(fused, kernel, bias):
        return (
            1.7
            * next_item_loss(
                fused,
                HeadWeights(kernel, bias),
                labels,
                counted,
                importance=importance,
                exclude_padding_class=exclude_padding_class,
                catalogue=CATALOGUE,
                tile=TileSize(tile, scores, 2**21),
            ).sum
        )

    def dense(fused, kernel, bias):
        return 1.7 * dense_loss(fused, kernel, bias, labels, weights, exclude_padding_class)

    value, grads = jax.value_and_grad(tiled, argnums=(0, 1, 2))(*arrays)
    expected, expected_grads = jax.value_and_grad(dense, argnums=(0, 1, 2))(*arrays)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(tiled(*arrays), expected, rtol=1e-5)  # without differentiation
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected_grad, atol=1e-5, rtol=1e-5)


def test_the_mean_is_over_the_sum_of_weights(inputs):
    fused, kernel, bias, labels, counted = inputs
    few = jnp.where(jnp.arange(LENGTH) == 2, 0.25, 0.0) * jnp.ones((BATCH, 1))
    for importance in (few, IMPORTANCE):
        weights = counted * importance
        term = next_item_loss(
            fused, HeadWeights(kernel, bias), labels, counted, importance=importance
        )
        assert 0 < few.sum() < 1 and float(term.weight) == pytest.approx(float(weights.sum()))
        dense = dense_loss(fused, kernel, bias, labels, weights, True)
        assert float(term.mean()) == pytest.approx(float(dense / weights.sum()), rel=1e-5)


@pytest.mark.parametrize("importance", [None, IMPORTANCE[:2]], ids=["alike", "weighted"])
@pytest.mark.parametrize("scores", [8, 16, 40, 999])
def test_chunks_of_a_catalogue_that_is_cut_over_devices(inputs, scores, importance):
    """Two devices with six classes each (one only fills up), 1, 2, 5 or all of them at a time."""
    fused, kernel, bias, labels, counted = (np.asarray(x)[:2] if x.ndim > 1 and len(x) == BATCH
                                            else np.asarray(x) for x in inputs)  # fmt: skip
    devices = Devices("shard_map", 2, 2)
    catalogue = devices.catalogue(CLASSES - 1)
    weights = np.pad(kernel, ((0, 0), (0, 1))), np.pad(bias, (0, 1))
    layout = PartitionSpec(None, MODEL_AXIS), PartitionSpec(MODEL_AXIS)

    def body(rows, weights):
        def share(weights):
            return next_item_loss(
                rows[0], HeadWeights(*weights), *rows[1:3],
                importance=rows[3] if len(rows) > 3 else None, exclude_padding_class=True,
                catalogue=catalogue, rows_axis=devices.rows_axis,
                tile=TileSize(8, scores, 2**21),
            ).sum  # fmt: skip

        value, gradients = jax.value_and_grad(share)(weights)
        return jax.lax.psum(value, devices.rows_axis), gradients

    run = devices.run(body, inputs=(ROWS, layout), output=(WHOLE, layout))
    more = () if importance is None else (np.asarray(importance),)
    value, gradients = run((fused, labels, counted, *more), devices.place(weights, layout))
    counts = counted if importance is None else counted * importance
    expected, wanted = jax.value_and_grad(dense_loss, (1, 2))(
        fused, kernel, bias, labels, counts, True
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient[..., :CLASSES], other, atol=1e-5, rtol=1e-5)
        assert not np.asarray(gradient)[..., CLASSES:].any()


def test_nothing_counted_is_a_zero_loss(inputs):
    fused, kernel, bias, labels, counted = inputs
    term = next_item_loss(
        fused,
        HeadWeights(kernel, bias),
        labels,
        counted & False,
        exclude_padding_class=True,
        catalogue=CATALOGUE,
    )
    assert term.sum == 0 and term.weight == 0 and term.mean() == 0


def test_padding_class_by_hand():
    fused, kernel = jnp.ones((1, 1, 1)), jnp.zeros((1, 3))
    label, counted = jnp.array([[2]]), jnp.array([[True]])
    bias = jnp.array([50.0, 0.0, 0.0])
    for exclude, expected in ((True, np.log(2)), (False, 50.0)):
        term = next_item_loss(
            fused,
            HeadWeights(kernel, bias),
            label,
            counted,
            exclude_padding_class=exclude,
            catalogue=Catalogue(2),
        )
        np.testing.assert_allclose(term.sum, expected, rtol=1e-6)


def test_bfloat16_rounds_the_inputs_of_products_and_nothing_else(inputs):
    """The dense formula of rounded inputs; its sums and its softmax are float32."""
    fused, kernel, bias, labels, counted = inputs

    def tiled(fused, kernel, bias):
        return next_item_loss(
            fused, HeadWeights(kernel, bias), labels, counted,
            exclude_padding_class=True, catalogue=CATALOGUE, compute_dtype="bfloat16",
        ).sum  # fmt: skip

    def rounded(x):
        return x.astype(jnp.bfloat16).astype(jnp.float32)

    value, gradients = jax.value_and_grad(tiled, (0, 1, 2))(fused, kernel, bias)
    dense, dense_gradients = jax.value_and_grad(dense_loss, (0, 1, 2))(
        rounded(fused), rounded(kernel), bias, labels, counted, True
    )
    np.testing.assert_allclose(value, dense, rtol=1e-5)
    for gradient, expected in zip(gradients, dense_gradients, strict=True):
        assert gradient.dtype == jnp.float32
        # The products of the backward pass round the scores' gradient as well.
        np.testing.assert_allclose(gradient, expected, rtol=2e-2, atol=2e-2)
    np.testing.assert_allclose(gradients[2], dense_gradients[2], rtol=1e-4, atol=1e-5)
