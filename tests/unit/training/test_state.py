"""The moving average of the parameters, by hand."""

import jax.numpy as jnp
import numpy as np
import optax

from tssr_jax.config import default
from tssr_jax.training.state import create_train_state
from tssr_jax.training.step import updated_average


def state_with(ema_decay, **fields):
    config = default.get_config()
    config.optimizer.ema_decay = ema_decay
    state = create_train_state({"kernel": jnp.array([0.0])}, optax.sgd(1.0), config)
    return state.replace(**fields)


def test_average_by_hand():
    state = state_with(0.9, step=jnp.int32(10_000), average={"kernel": jnp.array([2.0])})
    average = updated_average(state, {"kernel": jnp.array([12.0])}, 0.9)
    np.testing.assert_allclose(average["kernel"], [3.0], rtol=1e-5)  # 0.9 * 2 + 0.1 * 12


def test_a_young_average_forgets_the_initial_values():
    state = state_with(0.9)
    average = updated_average(state, {"kernel": jnp.array([10.0])}, 0.9)
    np.testing.assert_allclose(average["kernel"], [9.0], rtol=1e-6)  # (1 + 0) / (10 + 0) stay


def test_without_a_decay_there_is_no_average():
    state = state_with(0.0)
    assert state.average is None and state.eval_params is state.params
    assert updated_average(state, state.params, 0.0) is None
