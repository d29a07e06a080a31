"""Initial values of the reference implementation (docs/reference/method.md, "Reference mode")."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Initializer = Callable[..., Any]

dense_kernel: Initializer = nn.initializers.xavier_normal()
dense_bias: Initializer = nn.initializers.constant(0.1)


def symmetric_uniform(bound: float) -> Initializer:
    """Uniform values in [-bound, bound)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def table(num_items: int) -> Initializer:
    """Item and position tables: uniform in +-sqrt(1 / (num_items + 1))."""
    return symmetric_uniform((num_items + 1) ** -0.5)


def pytorch_dense(fan_in: int) -> Initializer:
    """Kernel and bias of a Dense layer as PyTorch draws them: uniform in +-1 / sqrt(fan_in)."""
    return symmetric_uniform(fan_in**-0.5)
