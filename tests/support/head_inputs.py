"""States, a head's weights, labels and which of them count, for the losses of next items."""

import jax

from tssr_jax.models.head import HeadWeights


def make_inputs(*, batch, length, d_model, classes, counted):
    keys = jax.random.split(jax.random.key(0), 5)
    weights = HeadWeights(
        jax.random.normal(keys[1], (d_model, classes)), jax.random.normal(keys[2], (classes,))
    )
    return (
        jax.random.normal(keys[0], (batch, length, d_model)),
        weights,
        jax.random.randint(keys[3], (batch, length), 1, classes),
        jax.random.bernoulli(keys[4], counted, (batch, length)),
    )
