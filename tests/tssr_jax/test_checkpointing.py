"""Which checkpoints are kept, and what does not fit."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from tssr_jax.checkpointing import Checkpointer, Progress
from tssr_jax.errors import UserError
from tssr_jax.train_state import create_train_state

NUM_ITEMS = 20


def state_at(step, size=3):
    config = default.get_config()
    params = {"dense": {"kernel": jnp.full((size,), float(step))}}
    state = create_train_state(params, optax.adam(1e-3), config)
    return state.replace(step=jnp.int32(step))


def steps_in(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_newest_and_best_are_kept_and_restored(tmp_path):
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        assert checkpointer.restore_newest(state_at(0)) is None
        for step, best in ((10, 10), (20, 20), (30, 20), (40, 20)):
            checkpointer.save(state_at(step), Progress(best, 0.5, (step - best) // 10))
    assert steps_in(tmp_path) == [20, 40]
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        state, progress = checkpointer.restore_newest(state_at(0))
        params, step = checkpointer.restore_best(state_at(0).params)
    assert int(state.step) == 40 and progress == Progress(20, 0.5, 2)
    np.testing.assert_array_equal(state.params["dense"]["kernel"], [40.0] * 3)
    assert step == 20
    np.testing.assert_array_equal(params["dense"]["kernel"], [20.0] * 3)


def test_an_average_is_what_ranks_and_the_trained_parameters_are_what_goes_on(tmp_path):
    def averaged(step, average):
        state = state_at(step)
        return state.replace(average={"dense": {"kernel": jnp.full((3,), average)}})

    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        checkpointer.save(averaged(10, 7.0), Progress(10, 0.5, 0))
        state, _ = checkpointer.restore_newest(averaged(0, 0.0))
        params, _ = checkpointer.restore_best(averaged(0, 0.0).eval_params)
    np.testing.assert_array_equal(state.params["dense"]["kernel"], [10.0] * 3)
    np.testing.assert_array_equal(state.average["dense"]["kernel"], [7.0] * 3)
    np.testing.assert_array_equal(params["dense"]["kernel"], [7.0] * 3)


def test_checkpoints_before_the_first_validation(tmp_path):
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        checkpointer.save(state_at(5), Progress())
        state, progress = checkpointer.restore_newest(state_at(0))
        assert int(state.step) == 5 and progress == Progress()
        with pytest.raises(UserError, match="no evaluated checkpoint"):
            checkpointer.restore_best(state_at(0).params)


def test_other_shapes_are_named(tmp_path):
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        checkpointer.save(state_at(5), Progress(5, 0.1, 0))
        with pytest.raises(UserError, match=r"dense/kernel has shape \(3,\) .* and \(4,\)"):
            checkpointer.restore_newest(state_at(0, size=4))
        with pytest.raises(UserError, match=r"dense/kernel has shape \(3,\) .* and \(4,\)"):
            checkpointer.restore_best(state_at(0, size=4).params)
        with pytest.raises(UserError, match="parameter dense/bias has shape none"):
            checkpointer.restore_best({"dense": {"bias": jnp.zeros(3), "kernel": jnp.zeros(3)}})
