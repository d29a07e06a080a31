"""TSSR in a training loop of one's own: arrays in, optax, lists out.

python examples/own_training_loop.py

Users walk along the items, so that the next one is certain: the loss falls within 20 steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tssr_jax import TSSR, LossConfig, init_params, rank, ranking_metrics, top_k, tssr_loss

NUM_ITEMS, FEATURE_DIM, LENGTH, USERS, STEPS = 50, 16, 8, 64, 20


def make_data():
    """Windows int [users, length + 1] of items 1..NUM_ITEMS, and features of the items."""
    rng = np.random.default_rng(0)
    start = rng.integers(0, NUM_ITEMS, (USERS, 1))
    windows = 1 + (start + np.arange(LENGTH + 1)) % NUM_ITEMS
    features = rng.normal(size=(NUM_ITEMS + 1, FEATURE_DIM)).astype(np.float32)
    features[0] = 0.0  # padding
    return jnp.asarray(windows, jnp.int32), jnp.asarray(features)


def main():
    """Trains and prints losses, NDCG@10 and a list; returns the losses."""
    windows, features = make_data()
    batch = {"item_sequence": windows[:, :-1], "labels": windows[:, 1:]}
    model = TSSR(
        NUM_ITEMS, d_model=32, num_heads=2, d_ffn=64, num_cross_layers=1, max_length=LENGTH
    )
    params = init_params(model, {"text": FEATURE_DIM}, seed=0)
    optimizer = optax.adam(1e-2)
    opt_state = optimizer.init(params)

    @jax.jit
    def train_step(params, opt_state, key):
        loss_of = lambda p: tssr_loss(model, p, batch, features, LossConfig(), key)  # noqa: E731
        (loss, terms), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss, terms

    losses = []
    for step in range(STEPS):
        key = jax.random.fold_in(jax.random.key(0), step)
        params, opt_state, loss, terms = train_step(params, opt_state, key)
        losses.append(float(loss))
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, prediction {float(terms['prediction']):.2f}")
    ranks = rank(model, params, windows[:, :-1], windows[:, -1], features)
    print(f"NDCG@10 {ranking_metrics(np.asarray(ranks))['ndcg@10']:.3f}")
    items, _ = top_k(model, params, windows[:1, :-1], 5, features)
    print(f"after {windows[0, :-1].tolist()}: {items[0].tolist()}")
    return losses


if __name__ == "__main__":
    main()
