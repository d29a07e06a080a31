"""A loss term before normalisation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class LossTerm(NamedTuple):
    """Sum of a loss over the anchors that count, and their number, or the sum of their weights.

    Both are kept, so that a mean over several devices or batches is sum(sums) / sum(weights).
    """

    sum: jax.Array
    weight: jax.Array

    def mean(self) -> jax.Array:
        """The mean; 0 where nothing counts."""
        return self.sum / jnp.where(self.weight > 0, self.weight, 1.0)
