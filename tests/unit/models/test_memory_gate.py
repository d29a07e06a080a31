"""What the memory gate reads of a history."""

import jax
import numpy as np

from tssr_jax.models.recall import MemoryGate


def test_a_short_history_is_trusted_as_the_shortest_that_the_gate_has_learnt_from():
    gate, rng = MemoryGate(num_parts=1, num_memories=2), np.random.default_rng(0)
    items = np.tril(np.ones((6, 6), np.int32))[:, ::-1]  # of 1 to 6 items
    times = np.arange(36).reshape(6, 6)
    params = gate.init(jax.random.key(0), items, times)["params"]
    params = {name: rng.normal(0, 0.1, x.shape) for name, x in params.items()}
    whole, least = (gate.apply({"params": params}, items, times, n) for n in (1, 3))
    for one, other in zip(whole, least, strict=True):
        np.testing.assert_array_equal(other[2:], one[2:])
        np.testing.assert_array_equal(other[:2], np.broadcast_to(one[2], other[:2].shape))
        assert (np.asarray(one[0]) != np.asarray(one[2])).all()
