"""InfoNCE over a batch that is cut over devices equals a dense formula over the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from tssr_jax.config.choices import CHOICES
from tssr_jax.losses.info_nce import Keys, info_nce

GROUPS, ROWS, WIDTH = 3, 16, 5
TILE = 2 * GROUPS  # scores per tile and row: the ring cuts a device's keys into tiles of two


@pytest.fixture(name="inputs", scope="module")
def fixture_inputs():
    """Queries, keys, the keys that compete (fewer on some devices), ids with repeats, anchors."""
    rng = np.random.default_rng(0)
    queries, keys = rng.normal(size=(2, GROUPS, ROWS, WIDTH)).astype(np.float32)
    mask = rng.random((GROUPS, ROWS)) < np.linspace(0.2, 1.0, ROWS)
    ids = rng.integers(1, 6, size=(GROUPS, ROWS))
    anchors = mask & (rng.random((GROUPS, ROWS)) < 0.8)
    return queries, keys, mask, ids, anchors


def dense(queries, keys, mask, ids, anchors):
    """Sum over the anchors, written down query by query."""
    total = 0.0
    for t, i in zip(*np.nonzero(anchors), strict=True):
        columns = [
            j
            for j in range(ROWS)
            if j == i or (mask[t, j] and (ids is None or ids[t, i] != ids[t, j]))
        ]
        scores = keys[t, np.array(columns)] @ queries[t, i]
        total += jax.nn.logsumexp(scores) - scores[columns.index(i)]
    return total


def per_device(negatives, axis):
    """Body of one device: its share of the sum, and the gradients of the whole sum."""

    def body(queries, keys, mask, ids, anchors):
        def share(queries, keys):
            scores = TILE * queries.shape[1]
            term = info_nce(queries, Keys(keys, mask, ids), anchors, negatives, axis, scores)
            return 1.7 * term.sum, term.weight

        grads, weight = jax.grad(share, argnums=(0, 1), has_aux=True)(queries, keys)
        value = share(queries, keys)[0]
        if axis is not None:
            value, weight = jax.lax.psum((value, weight), axis)
        return value, weight, grads

    return body


def run_pmap(body, devices, arrays):
    shards = [None if x is None else np.stack(np.split(x, devices, axis=1)) for x in arrays]
    run = jax.pmap(
        body,
        axis_name="data",
        in_axes=tuple(None if x is None else 0 for x in shards),
        out_axes=(None, None, 0),
        devices=jax.devices()[:devices],
    )
    value, weight, grads = run(*shards)
    return value, weight, [np.concatenate(list(grad), axis=1) for grad in grads]


def run_shard_map(body, devices, arrays):
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    rows, whole = PartitionSpec(None, "data"), PartitionSpec()
    run = jax.shard_map(
        body, mesh=mesh, in_specs=rows, out_specs=(whole, whole, rows), check_vma=False
    )
    return jax.jit(run)(*arrays)


@pytest.fixture(name="expected", scope="module")
def fixture_expected(inputs):
    """The dense sum and its gradients, with and without ids."""
    queries, keys, mask, ids, anchors = inputs

    def compute(ids):
        def total(queries, keys):
            return 1.7 * dense(queries, keys, mask, ids, anchors)

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(queries, keys)

    return {True: compute(ids), False: compute(None)}


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("negatives", CHOICES["loss.negatives"])
@pytest.mark.parametrize(
    ("run", "devices"),
    [(None, 1), (run_pmap, 2), (run_pmap, 8), (run_shard_map, 2), (run_shard_map, 8)],
)
def test_value_and_gradients_equal_the_dense_formula(  # noqa: PLR0917
    inputs, expected, run, devices, negatives, with_ids
):
    queries, keys, mask, ids, anchors = inputs
    arrays = (queries, keys, mask, ids if with_ids else None, anchors)
    if run is None:
        value, weight, grads = jax.jit(per_device(negatives, None))(*arrays)
    else:
        value, weight, grads = run(per_device(negatives, "data"), devices, arrays)
    expected_value, expected_grads = expected[with_ids]
    assert weight == anchors.sum()
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        scale = np.abs(expected_grad).max()
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-6 * scale)


def test_ring_holds_fewer_scores_than_the_batch_has():
    """XLA's memory of the gradient does not grow with the scores; gathering all of them does."""

    def temporaries(negatives, rows):
        shape = jax.ShapeDtypeStruct((1, rows, 8), jnp.float32)
        flags = jax.ShapeDtypeStruct((1, rows), jnp.bool_)

        def loss(queries, keys, flags):
            term = info_nce(queries, Keys(keys, flags, None), flags, negatives, None, 2**16)
            return term.sum

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(shape, shape, flags).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries("all_gather", 4096) > 4096 * 4096 * 4
    assert temporaries("ring", 4096) < 8 * 2**16 * 4
    assert temporaries("ring", 8192) < 3 * temporaries("ring", 4096)


def test_a_query_without_any_competitor_has_no_loss():
    queries = jnp.ones((1, 2, 3))
    anchors = jnp.array([[True, False]])
    for negatives in CHOICES["loss.negatives"]:
        term = info_nce(queries, Keys(queries, anchors, None), anchors, negatives, None)
        np.testing.assert_allclose(term.sum, 0.0, atol=1e-6)
        assert term.weight == 1
