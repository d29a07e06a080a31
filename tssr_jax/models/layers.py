"""What all layers are made of: products in a chosen precision, the Dense layer, dropout.

Parameters, residual streams, layer norms, softmaxes, the gate's mixture and all losses are float32.
Matrix products take their inputs in `config.model.compute_dtype`. Activations inside a sublayer,
where nothing is summed over layers, have this type, too.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from tssr_jax.models import initializers
from tssr_jax.models.initializers import Initializer
from tssr_jax.parallel import collectives
from tssr_jax.parallel.collectives import Axis


def product(x: jax.Array, y: jax.Array, dtype: str) -> jax.Array:
    """`x @ y` of inputs rounded to `dtype`, summed and returned in float32."""
    return jnp.matmul(x.astype(dtype), y.astype(dtype), preferred_element_type=jnp.float32)


class Dense(nn.Dense):
    """`flax.linen.Dense` that multiplies [rows, features] matrices whatever the input's rank.

    On a CPU, XLA's gradient of a product with two leading axes takes up to twice as long as with
    the axes merged.
    """

    kernel_init: Initializer = initializers.dense_kernel
    bias_init: Initializer = initializers.dense_bias

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [..., in_features] to [..., features]."""
        outputs = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return outputs.reshape(*inputs.shape[:-1], self.features)


class Dropout(nn.Module):
    """Zeroes a share of the values and scales the others up, with one mask for each row.

    A row's mask is a function of the rng "dropout", the call, and the row's index in the global
    batch: results do not depend on the number of devices.

    Attributes:
      rate: probability that a value is zeroed.
      axis: the device axis that the rows are cut along; None on one device.
    """

    rate: float
    axis: Axis = None

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        """Maps [batch, ...] to the same shape."""
        if deterministic or not self.rate:
            return x
        rows = x.shape[0]
        row = collectives.index(self.axis) * rows + jnp.arange(rows)
        keep_rate = 1.0 - self.rate
        bits = random_bits(self.make_rng("dropout"), row, x.shape[1:])
        return jnp.where(bits < jnp.uint32(keep_rate * 2**32), x / keep_rate, 0.0)


def random_bits(key: jax.Array, row: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform uint32 [rows, *shape]; each row is a function of the key and its index only.

    Args:
      key: a key of jax.random.
      row: int [rows], indices of the rows.
      shape: shape of a row; fewer than 2**32 numbers.
    """
    first, second = jax.random.key_data(key).reshape(-1)[-2:]
    place = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    seeds = jnp.stack([_mix(row.astype(jnp.uint32) ^ first), _mix(row.astype(jnp.uint32) + second)])
    own, other = seeds.reshape(2, -1, *[1] * len(shape))
    return _mix((place ^ own) * jnp.uint32(0x9E3779B1) + other)


def _mix(x: jax.Array) -> jax.Array:
    """A permutation of 32 bits that spreads each over all (C. Wellons' "lowbias32")."""
    x ^= x >> 16
    x *= jnp.uint32(0x7FEB352D)
    x ^= x >> 15
    x *= jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
