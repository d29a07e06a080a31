"""DrawnItems beside the batch's: dense formulas, what is near, the queue, several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support.model_losses import loss_terms
from tests.support.small_model import with_attention
from tssr_jax.config import default
from tssr_jax.losses import further_negatives
from tssr_jax.losses.further_negatives import UserQueue, draw_near_items
from tssr_jax.losses.info_nce import ExtraKeys, Keys, info_nce
from tssr_jax.losses.objective import Competitors
from tssr_jax.models.apply import embed_items, encode
from tssr_jax.models.init import init_params, make_model
from tssr_jax.parallel.catalogue import Catalogue

GROUPS, QUERIES, WIDTH, EXTRA = 2, 5, 3, 4


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("negatives", ["all_gather", "ring"])
def test_further_keys_against_one_softmax_over_all(negatives, with_ids):
    rng = np.random.default_rng(0)
    queries, vectors = (jnp.array(rng.normal(size=(GROUPS, QUERIES, WIDTH))) for _ in range(2))
    further = jnp.array(rng.normal(size=(EXTRA, WIDTH)))
    mask = jnp.array([True, True, False, True])
    ids = jnp.array([[1, 2, 3, 4, 5], [6, 7, 8, 2, 9]]) if with_ids else None
    further_ids = jnp.array([2, 50, 1, 9]) if with_ids else None
    anchors = jnp.ones((GROUPS, QUERIES), bool)

    def ours(queries, vectors, further):
        extra = ExtraKeys(further, mask, further_ids)
        keys = Keys(vectors, anchors, ids)
        return info_nce(queries, keys, anchors, negatives, None, extra=extra).sum

    def dense(queries, vectors, further):
        scores = jnp.einsum("tid,tjd->tij", queries, vectors)
        more = queries @ further.T
        own = jnp.diagonal(scores, axis1=1, axis2=2)
        allowed = jnp.broadcast_to(mask, more.shape)
        if with_ids:
            allowed &= ids[:, :, None] != further_ids
        more = jnp.where(allowed, more, -jnp.inf)
        both = jnp.concatenate([scores, more], axis=-1)
        return (jax.nn.logsumexp(both, axis=-1) - own).sum()

    arguments = queries, vectors, further
    for found, expected in zip(
        jax.value_and_grad(ours, argnums=(0, 1, 2))(*arguments),
        jax.value_and_grad(dense, argnums=(0, 1, 2))(*arguments),
        strict=True,
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_near_items_are_near(monkeypatch):
    monkeypatch.setattr(further_negatives, "NEAREST", 3)
    vectors = np.random.default_rng(0).normal(size=(30, 4))
    vectors[7] = 0.0
    batch = np.array([[0, 0, 5], [0, 9, 5], [0, 0, 0]], np.int32)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    expected = set()
    for item in (5, 9):
        cosines = unit @ unit[item]
        cosines[[0, 7, item]] = -np.inf
        expected |= set(np.argsort(-cosines)[:3].tolist())
    drawn = draw_near_items(jnp.array(vectors), batch, 200, jax.random.key(0), None)
    assert set(drawn.tolist()) == expected
    nothing = draw_near_items(jnp.array(vectors), batch[2:], 4, jax.random.key(0), None)
    assert nothing.tolist() == [0] * 4


def test_the_oldest_users_leave_the_queue():
    queue = UserQueue.empty(3, 1)
    for step in range(3):
        own = jnp.array([[10.0 * step], [10.0 * step + 1]])
        queue = queue.extended(own, -own, jnp.array([True, step != 1]), None)
    assert queue.id[:, 0].tolist() == [20, 21, 10] and queue.content[0, 0] == -20
    assert queue.filled.tolist() == [True, True, True]
    assert queue.extended(own, own, jnp.array([True, False]), None).filled.tolist() == [
        True, False, True
    ]  # fmt: skip


def test_each_direction_has_the_further_keys_of_the_stream_that_it_asks():
    config = default.get_config()
    config.model.update(d_model=8, d_ffn=8, num_heads=2, num_cross_layers=1, max_length=4)
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(31, 6)), jnp.float32)
    windows = rng.integers(1, 31, (6, 5)).astype(np.int32)
    windows[0, :2] = 0
    batch = {"item_sequence": windows[:, :-1], "labels": windows[:, 1:]}
    batch["row_mask"] = np.ones(6, bool)
    model = make_model(config, Catalogue(30))
    params = with_attention(init_params(model, {"text": 6}, 0), 0.5)
    past = (jnp.asarray(rng.normal(size=(5, 8)), jnp.float32) for _ in range(2))
    queue = UserQueue(*past, jnp.array([True, True, False, True, False]))
    hard = jnp.array([7, 0, 12, int(windows[1, 2])])
    outputs = encode(model, params, batch["item_sequence"], features)
    near = {
        stream: ExtraKeys(
            embed_items(model, params, stream, hard[None], features)[0], hard > 0, hard
        )
        for stream in ("id", "content")
    }
    terms = loss_terms(
        model, params, outputs, batch, config, features=features,
        competitors=Competitors(near_items=near, users=queue),
    )  # fmt: skip

    sequence, valid = batch["item_sequence"], batch["item_sequence"] > 0
    streams = {"id": outputs.id, "text": outputs.content}
    pooled = {n: jnp.mean(x.encoded, 1, where=valid[..., None]) for n, x in streams.items()}
    queued = {"id": queue.id, "text": queue.content}
    vectors = {
        n: embed_items(model, params, stream, hard[None], features)[0]
        for n, stream in (("id", "id"), ("text", "content"))
    }
    for anchor, target in (("text", "id"), ("id", "text")):
        keys = jnp.concatenate([pooled[target], queued[target][queue.filled]])
        cosines = optax.cosine_similarity(pooled[anchor][:, None], keys[None], epsilon=1e-12)
        users = -jnp.diagonal(jax.nn.log_softmax(cosines / config.loss.user_temperature)).mean()
        losses = []
        for i, t in zip(*np.nonzero(valid[:, :-1] & valid[:, 1:]), strict=True):
            own, items = sequence[i, t + 1], sequence[:, t + 1]
            rows = [i, *np.flatnonzero((items > 0) & (items != own))]
            near = np.flatnonzero((np.asarray(hard) > 0) & (np.asarray(hard) != own))
            candidates = jnp.concatenate(
                [streams[target].input_embedding[np.array(rows), t + 1], vectors[target][near]]
            )
            scores = candidates @ streams[anchor].encoded[i, t]
            losses.append(-jax.nn.log_softmax(scores)[0])
        np.testing.assert_allclose(terms[f"user_{anchor}2{target}"].mean(), users, rtol=1e-5)
        items = jnp.stack(losses).mean()
        np.testing.assert_allclose(terms[f"item_{anchor}2{target}"].mean(), items, rtol=1e-5)
