"""Experts: their pool and their weights, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from tssr_jax.models import experts
from tssr_jax.models.head import HeadWeights

ID, CONTENT, JOINT = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]]), jnp.array([[10.0, 20.0]])


def test_pools_by_hand():
    whole = experts.pool({"id": ID, "content": CONTENT, "joint": JOINT})
    np.testing.assert_allclose(whole, [[11 / 3, 22 / 3, 13 / 3, 24 / 3]], rtol=1e-6)
    np.testing.assert_array_equal(experts.pool({"id": ID}), [[1, 2, 0, 0]])
    np.testing.assert_array_equal(experts.pool({"content": CONTENT}), [[0, 0, 3, 4]])
    np.testing.assert_array_equal(experts.pool({"id": ID, "content": CONTENT}), [[0.5, 1, 1.5, 2]])


@pytest.mark.parametrize(
    ("expert", "kernel"), [("id", [[1], [2]]), ("content", [[30], [40]]), ("joint", [[31], [42]])]
)
def test_weights_by_hand(expert, kernel):
    weights = HeadWeights(jnp.array([[1.0], [2.0], [30.0], [40.0]]), jnp.array([5.0]))
    own = experts.weights_of(expert, weights)
    np.testing.assert_array_equal(own.kernel, kernel)
    np.testing.assert_array_equal(own.bias, [5])
