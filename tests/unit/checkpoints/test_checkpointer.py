"""Which checkpoints are kept, and what does not fit."""

import errno

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support.model_losses import restore_newest, save
from tssr_jax.checkpoints.checkpointer import Checkpointer, Progress
from tssr_jax.checkpoints.fingerprint import fingerprints
from tssr_jax.config import default
from tssr_jax.errors import UserError
from tssr_jax.training.state import create_train_state

NUM_ITEMS = 20


def state_at(step, size=3):
    config = default.get_config()
    params = {"dense": {"kernel": jnp.full((size,), float(step))}}
    state = create_train_state(params, optax.adam(1e-3), config)
    return state.replace(step=jnp.int32(step))


def steps_in(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_two_newest_and_their_best_are_kept_and_restored(tmp_path):
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        assert restore_newest(checkpointer, state_at(0)) is None
        for step, best in ((10, 10), (20, 20), (30, 20), (40, 20), (50, 20)):
            save(checkpointer, state_at(step), Progress(best, 0.5, (step - best) // 10))
    assert steps_in(tmp_path) == [20, 40, 50]
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        state, progress = restore_newest(checkpointer, state_at(0))
        params, step = checkpointer.restore_best(state_at(0).params)
    assert int(state.step) == 50 and progress == Progress(20, 0.5, 3)
    np.testing.assert_array_equal(state.params["dense"]["kernel"], [50.0] * 3)
    assert step == 20
    np.testing.assert_array_equal(params["dense"]["kernel"], [20.0] * 3)


def test_an_average_is_what_ranks_and_the_trained_parameters_are_what_goes_on(tmp_path):
    def averaged(step, average):
        state = state_at(step)
        return state.replace(average={"dense": {"kernel": jnp.full((3,), average)}})

    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        save(checkpointer, averaged(10, 7.0), Progress(10, 0.5, 0))
        state, _ = restore_newest(checkpointer, averaged(0, 0.0))
        params, _ = checkpointer.restore_best(averaged(0, 0.0).eval_params)
    np.testing.assert_array_equal(state.params["dense"]["kernel"], [10.0] * 3)
    np.testing.assert_array_equal(state.average["dense"]["kernel"], [7.0] * 3)
    np.testing.assert_array_equal(params["dense"]["kernel"], [7.0] * 3)


def test_checkpoints_before_the_first_validation(tmp_path):
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        save(checkpointer, state_at(5), Progress())
        state, progress = restore_newest(checkpointer, state_at(0))
        assert int(state.step) == 5 and progress == Progress()
        with pytest.raises(UserError, match="no evaluated checkpoint"):
            checkpointer.restore_best(state_at(0).params)


def test_other_shapes_are_named(tmp_path):
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        save(checkpointer, state_at(5), Progress(5, 0.1, 0))
        with pytest.raises(UserError, match=r"dense/kernel has shape \(3,\) .* and \(4,\)"):
            restore_newest(checkpointer, state_at(0, size=4))
        with pytest.raises(UserError, match=r"dense/kernel has shape \(3,\) .* and \(4,\)"):
            checkpointer.restore_best(state_at(0, size=4).params)
        with pytest.raises(UserError, match="dense/bias has shape none"):
            checkpointer.restore_best({"dense": {"bias": jnp.zeros(3), "kernel": jnp.zeros(3)}})


def test_another_catalogue_is_told(tmp_path):
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        save(checkpointer, state_at(5), Progress(5, 0.1, 0))
    with Checkpointer(tmp_path, NUM_ITEMS + 1) as checkpointer:
        for restore in (
            lambda: restore_newest(checkpointer, state_at(0)),
            lambda: checkpointer.restore_best(state_at(0).params),
        ):
            with pytest.raises(UserError, match="a catalogue of 20 items, this one has 21"):
                restore()
    assert steps_in(tmp_path) == [5]  # it is no damage


def test_a_new_best_leaves_the_old_one_for_the_checkpoint_before_it(tmp_path):
    for step, best in ((10, 10), (20, 10), (30, 10), (40, 40)):
        # Opened anew each time: what to keep does not depend on one process.
        with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
            restore_newest(checkpointer, state_at(0))
            save(checkpointer, state_at(step), Progress(best, 0.5, 0))
    assert steps_in(tmp_path) == [10, 30, 40]


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("item", ["params", "rest", "progress"])
@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, item, damage):
    reports = []
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        for step, best in ((10, 10), (20, 20)):
            save(checkpointer, state_at(step, size=3000), Progress(best, 0.5, 0))
    damage(largest_file(tmp_path / "checkpoints" / "20" / item))
    with Checkpointer(tmp_path, NUM_ITEMS, reports.append) as checkpointer:
        if item != "rest":
            params, step = checkpointer.restore_best(state_at(0, size=3000).params)
            assert step == 10 and params["dense"]["kernel"][0] == 10.0
            assert "checkpoints/20 is damaged" in reports.pop()
        state, progress = restore_newest(checkpointer, state_at(0, size=3000))
        assert int(state.step) == 10 and progress == Progress(10, 0.5, 0)
        assert "checkpoints/20 is damaged" in reports.pop()
        save(checkpointer, state_at(20, size=3000), Progress(10, 0.5, 1))
    assert steps_in(tmp_path) == [10, 20]
    assert (tmp_path / "checkpoints-damaged-20-1").is_dir()


def test_a_step_that_is_damaged_twice_is_moved_aside_twice(tmp_path):
    for time in (1, 2):
        with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
            restore_newest(checkpointer, state_at(0))
            for step in (10, 20):
                save(checkpointer, state_at(step), Progress(10, 0.5, 0))
        flip(largest_file(tmp_path / "checkpoints" / "20" / "rest"))
        with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
            assert int(restore_newest(checkpointer, state_at(0))[0].step) == 10
        assert (tmp_path / f"checkpoints-damaged-20-{time}").is_dir()


def test_metadata_that_is_gone_is_damage(tmp_path):
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        for step in (10, 20):
            save(checkpointer, state_at(step), Progress(step, 0.5, 0))
    (tmp_path / "checkpoints" / "20" / "params" / "_METADATA").unlink()
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        assert int(restore_newest(checkpointer, state_at(0))[0].step) == 10


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
        ValueError("UNAVAILABLE: Error reading gs://b/checkpoints/10: HTTP 503"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_error_of_the_machine_is_no_damage(tmp_path, monkeypatch, error, wrapped):
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        for step in (10, 20):
            save(checkpointer, state_at(step), Progress(10, 0.5, 0))
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:

        def fail(*_, **__):
            if wrapped:
                raise ValueError("reading failed") from error
            raise error

        monkeypatch.setattr(checkpointer._manager, "restore", fail)
        with pytest.raises(ValueError if wrapped else type(error)):
            restore_newest(checkpointer, state_at(0))
        with pytest.raises(ValueError if wrapped else type(error)):
            checkpointer.restore_best(state_at(0).params)
    assert steps_in(tmp_path) == [10, 20]


def test_what_no_reader_can_tell_from_damage_moves_nothing(tmp_path, monkeypatch):
    """Orbax hides some errors of the machine: then no checkpoint can be read."""
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        for step in (10, 20):
            save(checkpointer, state_at(step), Progress(10, 0.5, 0))
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:

        def fail(*_, **__):
            raise KeyError("params")

        monkeypatch.setattr(checkpointer._manager, "restore", fail)
        with pytest.raises(UserError, match=r"No checkpoint .* can be read .*left as they are"):
            restore_newest(checkpointer, state_at(0))
    assert steps_in(tmp_path) == [10, 20]
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        assert int(restore_newest(checkpointer, state_at(0))[0].step) == 20


def test_a_state_is_restored_by_its_shapes_alone(tmp_path):
    """Resuming must not hold a second state, which the devices may have no room for."""
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        save(checkpointer, state_at(10), Progress(10, 0.5, 0))
        whole, _ = restore_newest(checkpointer, state_at(0))
        described = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_at(0)
        )
        state, progress = restore_newest(checkpointer, described)
    assert progress == Progress(10, 0.5, 0)
    jax.tree.map(np.testing.assert_array_equal, state, whole)
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, whole)


def test_a_last_save_that_fails_is_told(tmp_path, monkeypatch):
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        save(checkpointer, state_at(10), Progress(10, 0.5, 0))
        checkpointer._manager.wait_until_finished()
        with monkeypatch.context() as full:

            def fail():
                raise ValueError("OUT_OF_RANGE: Error writing dense.kernel/0")

            full.setattr(checkpointer._manager, "wait_until_finished", fail)
            with pytest.raises(UserError, match=r"could not be written to .*OUT_OF_RANGE"):
                checkpointer.restore_best(state_at(0).params)
    assert steps_in(tmp_path) == [10]


def test_only_damaged_checkpoints(tmp_path):
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        save(checkpointer, state_at(10), Progress(10, 0.5, 0))
    flip(largest_file(tmp_path / "checkpoints" / "10" / "progress"))
    with (
        Checkpointer(tmp_path, NUM_ITEMS) as checkpointer,
        pytest.raises(UserError, match=r"No checkpoint .* can be read \(step 10: its progress is"),
    ):
        restore_newest(checkpointer, state_at(0))
    assert steps_in(tmp_path) == [10]  # left for whoever can mend it


def test_without_a_readable_best_the_newest_is_used_and_that_is_told(tmp_path):
    reports = []
    with Checkpointer(tmp_path, NUM_ITEMS) as checkpointer:
        for step in (10, 20, 30):
            save(checkpointer, state_at(step, size=3000), Progress(10, 0.5, 0))
    flip(largest_file(tmp_path / "checkpoints" / "10" / "params"))
    with Checkpointer(tmp_path, NUM_ITEMS, reports.append) as checkpointer:
        params, step = checkpointer.restore_best(state_at(0, size=3000).params)
    assert step == 30 and params["dense"]["kernel"][0] == 30.0
    assert "checkpoints/10 is damaged" in reports[0]
    assert reports[1] == "Using the checkpoint of step 30 instead of the best one."
    for step in (20, 30):
        flip(largest_file(tmp_path / "checkpoints" / str(step) / "params"))
    with (
        Checkpointer(tmp_path, NUM_ITEMS) as checkpointer,
        pytest.raises(UserError, match=r"No checkpoint .* can be read \(step 10: .*step 30: .*st"),
    ):
        checkpointer.restore_best(state_at(0, size=3000).params)


def test_a_fingerprint_knows_values_and_places_but_not_filling():
    tree = {"output": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4)}}
    number = fingerprints(tree)["output/kernel"]
    assert 0 < number < 2**32
    swapped = {"output": {"kernel": tree["output"]["kernel"][:, ::-1].copy()}}
    filled = {"output": {"kernel": np.pad(tree["output"]["kernel"], ((0, 0), (0, 3)))}}
    assert fingerprints(swapped)["output/kernel"] != number
    assert fingerprints(filled)["output/kernel"] == number
    for i in range(32):
        one = tree["output"]["kernel"].copy()
        one.view(np.uint32)[1, 2] ^= np.uint32(1 << i)
        assert fingerprints({"output": {"kernel": one}})["output/kernel"] != number
