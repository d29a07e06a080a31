"""The optimiser's options, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from tssr_jax.config import default
from tssr_jax.training.optimizer import make_optimizer

PARAMS = {
    "dense": {"kernel": jnp.full((2,), 2.0), "bias": jnp.full((2,), 2.0)},
    "norm": {"scale": jnp.full((2,), 2.0)},
    "table": {"embedding": jnp.full((2,), 2.0)},
    "attention_residual_scale": jnp.array(2.0),
}


def updates(gradient, steps=1, **options):
    config = default.get_config().optimizer
    config.update(learning_rate=0.1, **options)
    optimizer = make_optimizer(config)
    state = optimizer.init(PARAMS)
    grads = {
        "dense": {"kernel": gradient, "bias": gradient},
        "norm": {"scale": gradient},
        "table": {"embedding": gradient},
        "attention_residual_scale": gradient[0],
    }
    result = []
    for _ in range(steps):
        update, state = optimizer.update(grads, state, PARAMS)
        result.append(update)
    return result


def test_adam_takes_steps_of_the_learning_rate():
    (update,) = updates(jnp.array([3.0, -5.0]))
    np.testing.assert_allclose(update["dense"]["kernel"], [-0.1, 0.1], rtol=1e-5)


def test_warm_up_is_linear():
    sizes = [
        -float(update["dense"]["kernel"][0])
        for update in updates(jnp.array([1.0, 1.0]), steps=6, warmup_steps=4)
    ]
    np.testing.assert_allclose(sizes, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rtol=1e-4)


def test_a_warm_up_of_one_step_is_none():
    (update,) = updates(jnp.array([1.0, 1.0]), warmup_steps=1)
    np.testing.assert_allclose(update["dense"]["kernel"], [-0.1, -0.1], rtol=1e-5)


def test_weight_decay_spares_biases_norms_and_scalars():
    (update,) = updates(jnp.zeros(2), weight_decay=0.5)
    np.testing.assert_allclose(update["dense"]["kernel"], [-0.1, -0.1])  # 0.1 * 0.5 * 2
    np.testing.assert_allclose(update["table"]["embedding"], [-0.1, -0.1])
    for spared in (
        update["dense"]["bias"],
        update["norm"]["scale"],
        update["attention_residual_scale"],
    ):
        assert not np.any(spared)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_clipping_bounds_the_global_norm(clip_norm):
    """Adam hides the size of the first gradient, not the ratio of a small second one to it."""
    config = default.get_config().optimizer
    config.update(learning_rate=1.0, clip_norm=clip_norm)
    optimizer = make_optimizer(config)
    params = {"kernel": jnp.zeros(1)}
    state = optimizer.init(params)
    _, state = optimizer.update({"kernel": jnp.array([1000.0])}, state, params)
    update, _ = optimizer.update({"kernel": jnp.array([1.0])}, state, params)
    # Adam's moments after two steps, corrected for their start at zero.
    first = 1.0 if clip_norm else 1000.0
    mean = (0.9 * 0.1 * first + 0.1) / (1 - 0.9**2)
    square = (0.999 * 0.001 * first**2 + 0.001) / (1 - 0.999**2)
    expected = mean / np.sqrt(square)
    np.testing.assert_allclose(-update["kernel"][0], expected, rtol=1e-4)
