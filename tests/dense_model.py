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


def stack(p, x, other, allowed, heads):
    for i in range(len(p)):
        x = block(p[f"layer_{i}"], x, x if other is None else other, allowed, heads)
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
    encoded = [
        stack(params[name], x + positions, None, allowed, heads)
        for name, x in zip(("id_encoder", "content_encoder"), embedded, strict=True)
    ]
    crossed = [
        stack(params[name], own, other, allowed, heads)
        for name, own, other in zip(
            ("id_cross", "content_cross"), encoded, encoded[::-1], strict=True
        )
    ]
    gate = jax.nn.sigmoid(dense(params["gate"], jnp.concatenate(crossed, axis=-1)))
    fused = gate * crossed[0] + (1 - gate) * crossed[1]
    return embedded, encoded, fused, dense(params["output"], fused)
