"""Dropout whose masks do not depend on how a batch is cut over devices."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from tssr_jax import collectives
from tssr_jax.collectives import Axis


class Dropout(nn.Module):
    """Zeroes a share of the values and scales the others up, by a mask of each row's own.

    A row's mask is a function of the rng "dropout", of the call, and of the row's place in the
    global batch: the same batch gives the same numbers on any number of devices.

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
        places = collectives.index(self.axis) * rows + jnp.arange(rows)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), places)
        keep_rate = 1.0 - self.rate
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, keep_rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / keep_rate, 0.0)
