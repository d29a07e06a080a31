"""The model's forward pass written again from its equations, in plain array operations.

Shares no code with the package: no modules, no heads one by one, no lookup over devices.
"""

import jax
import jax.numpy as jnp


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return p["scale"] * centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) + p["bias"]


def block(p, x, other, allowed, heads):
    batch, length, width = x.shape
    q, k, v = (
        dense(p["attention"][name], source).reshape(batch, length, heads, width // heads)
        for name, source in (("query", x), ("key", other), ("value", other))
    )
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(width / heads)
    weights = jax.nn.softmax(jnp.where(allowed[:, None], scores, -1e9), axis=-1)
    attended = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
    update = dense(p["attention"]["out"], attended)
    x = norm(p["attention_norm"], x + p["attention_residual_scale"] * update)
    hidden = jax.nn.gelu(dense(p["ffn"]["up"], x), approximate=False)
    return norm(p["ffn_norm"], x + p["ffn_residual_scale"] * dense(p["ffn"]["down"], hidden))


def stack(blocks, stream, x, other, *, allowed, heads):
    for i in range(len(blocks["attention_residual_scale"])):
        own = jax.tree.map(lambda p, i=i: p[i, stream], blocks)
        x = block(own, x, x if other is None else other, allowed, heads)
    return x


def forward(params, sequence, features, heads):
    """Embeddings and unimodal outputs of both streams (id, content), fused states, logits."""
    length = sequence.shape[1]
    allowed = jnp.tril(jnp.ones((length, length), bool)) & (sequence > 0)[:, None, :]
    positions = params["position_embedding"]["embedding"]
    embedded = (
        params["token_embedding"]["embedding"][sequence],
        dense(params["content_projection"], features[sequence]),
    )
    # [layers, streams, ...]; one self-attention layer, the others cross.
    unimodal, cross = (
        jax.tree.map(lambda p, part=part: p[part], params["blocks"])
        for part in (slice(0, 1), slice(1, None))
    )
    encoded = [
        stack(unimodal, i, x + positions, None, allowed=allowed, heads=heads)
        for i, x in enumerate(embedded)
    ]
    crossed = [
        stack(cross, i, encoded[i], encoded[1 - i], allowed=allowed, heads=heads) for i in range(2)
    ]
    gate = jax.nn.sigmoid(dense(params["gate"], jnp.concatenate(crossed, axis=-1)))
    fused = gate * crossed[0] + (1 - gate) * crossed[1]
    return embedded, encoded, fused, dense(params["output"], fused)
