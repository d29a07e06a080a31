"""InfoNCE whose negatives are the keys of the whole global batch, on any number of devices.

Every device holds the queries and keys of its own rows. Two implementations of the same numbers:

    all_gather   every device collects all keys and keeps its [groups, rows, all rows] scores for
                 the backward pass: the fastest while they are small.
    ring         keys travel from device to device (ppermute) and are scored a tile at a time into
                 a running log-sum-exp; the backward pass scores them again, and each key's
                 gradient travels with it. Memory per device does not depend on their number.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tssr_jax.losses.base import LossTerm
from tssr_jax.parallel import collectives
from tssr_jax.parallel.collectives import Axis

# A pair that must not compete gets this score; finite, so that a row without any allowed key
# stays finite too.
EXCLUDED_SCORE = -1e9
# The ring holds at most about this many scores at a time: 128 MiB in float32.
SCORES_PER_TILE = 2**25


class Keys(NamedTuple):
    """Keys that queries are compared with.

    Attributes:
      vectors: [groups, rows, d_model].
      mask: bool [groups, rows], the keys that compete.
      ids: int [groups, rows]; a key with the id of the query's own key is no negative. None makes
        all keys negatives.
    """

    vectors: jax.Array
    mask: jax.Array
    ids: jax.Array | None


def info_nce(  # noqa: PLR0917
    queries: jax.Array,
    keys: Keys,
    anchors: jax.Array,
    negatives: str,
    axis: Axis,
    scores_per_tile: int = SCORES_PER_TILE,
) -> LossTerm:
    """Cross entropy of each query's scores `query . key` with its own key as the target.

    Query i of group t is compared with the keys of group t in all rows of the global batch; its own
    key is key i.

    Args:
      queries: [groups, rows, d_model].
      keys: this device's keys.
      anchors: bool [groups, rows], the queries that count; their own keys must compete.
      negatives: "all_gather" or "ring".
      axis: the device axis that the batch is cut along; None on one device.
      scores_per_tile: upper bound of the scores that the ring holds at a time.

    Returns:
      This device's share: the sum over its own anchors, and their number.
    """
    own = (queries * keys.vectors).sum(axis=-1)
    if negatives == "ring":
        log_normaliser = _ring(queries, keys, axis, scores_per_tile)
    else:
        log_normaliser = _gathered(queries, keys, axis)
    losses = jnp.where(anchors, log_normaliser - own, 0.0)
    return LossTerm(losses.sum(), anchors.sum().astype(losses.dtype))


def _gathered(queries: jax.Array, keys: Keys, axis: Axis) -> jax.Array:
    """Log-sum-exp of each query's scores, [groups, rows]."""
    everyone = jax.tree.map(partial(collectives.all_gather, axis=axis, dimension=1), keys)
    row = jnp.arange(queries.shape[1]) + collectives.index(axis) * queries.shape[1]
    own = row[:, None] == jnp.arange(everyone.mask.shape[1])
    return jax.nn.logsumexp(_scores(queries, keys.ids, everyone, own), axis=-1)


def _scores(
    queries: jax.Array, query_ids: jax.Array | None, keys: Keys, own: jax.Array
) -> jax.Array:
    """Scores [groups, rows, keys], EXCLUDED_SCORE where a key does not compete.

    Args:
      queries: [groups, rows, d_model].
      query_ids: ids of the queries' own keys, [groups, rows].
      keys: of any device.
      own: bool [rows, keys], True where the key is the query's own.
    """
    allowed = keys.mask[:, None, :]
    if query_ids is not None and keys.ids is not None:
        allowed = allowed & (own | (query_ids[:, :, None] != keys.ids[:, None, :]))
    scores = jnp.einsum("tid,tjd->tij", queries, keys.vectors)
    return jnp.where(allowed, scores, EXCLUDED_SCORE)


def _ring(queries: jax.Array, keys: Keys, axis: Axis, scores_per_tile: int) -> jax.Array:
    """`_gathered` without ever holding all keys, or all scores."""
    groups, rows, _ = queries.shape
    tile = _tile_size(rows, groups * rows, scores_per_tile)
    query_ids = keys.ids
    padding = ((0, 0), (0, -rows % tile))
    keys = Keys(
        jnp.pad(keys.vectors, (*padding, (0, 0))),
        jnp.pad(keys.mask, padding),
        None if keys.ids is None else jnp.pad(keys.ids, padding),
    )
    return _log_normaliser(queries, keys.vectors, keys.mask, (query_ids, keys.ids), axis, tile)


def _tile_size(rows: int, queries: int, scores_per_tile: int) -> int:
    """Number of keys in a tile: all keys, or a power of two."""
    most = max(1, scores_per_tile // queries)
    return rows if rows <= most else 1 << (most.bit_length() - 1)


Ids = tuple[jax.Array | None, jax.Array | None]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _log_normaliser(  # noqa: PLR0917
    queries: jax.Array,
    vectors: jax.Array,
    mask: jax.Array,
    ids: Ids,
    axis: Axis,
    tile: int,
) -> jax.Array:
    return _forward(queries, vectors, mask, ids, axis, tile)[0]


def _forward(  # noqa: PLR0917
    queries: jax.Array,
    vectors: jax.Array,
    mask: jax.Array,
    ids: Ids,
    axis: Axis,
    tile: int,
) -> tuple[jax.Array, tuple]:
    query_ids, key_ids = ids

    def visit(hop: jax.Array | int, visitor: Keys, running: tuple) -> tuple:
        def add_tile(i: jax.Array, running: tuple) -> tuple:
            highest, total = running
            part, own = _tile(visitor, hop, i, tile, queries.shape[1])
            scores = _scores(queries, query_ids, part, own)
            new_highest = jnp.maximum(highest, scores.max(axis=-1))
            total = total * jnp.exp(highest - new_highest)
            return new_highest, total + jnp.exp(scores - new_highest[..., None]).sum(axis=-1)

        return jax.lax.fori_loop(0, visitor.mask.shape[1] // tile, add_tile, running)

    def hop_on(hop: jax.Array, carry: tuple) -> tuple:
        visitor, running = carry
        visitor = collectives.shift(visitor, axis)
        return visitor, visit(hop, visitor, running)

    home = Keys(vectors, mask, key_ids)
    start = (
        jnp.full(queries.shape[:2], EXCLUDED_SCORE, queries.dtype),
        jnp.zeros(queries.shape[:2], queries.dtype),
    )
    carry = (home, visit(0, home, start))
    _, (highest, total) = jax.lax.fori_loop(1, collectives.size(axis), hop_on, carry)
    log_normaliser = highest + jnp.log(total)
    return log_normaliser, (queries, vectors, mask, ids, log_normaliser)


def _backward(
    axis: Axis, tile: int, saved: tuple, cotangent: jax.Array
) -> tuple[jax.Array | None, ...]:
    queries, vectors, mask, (query_ids, key_ids), log_normaliser = saved

    def visit(hop: jax.Array, carry: tuple) -> tuple:
        visitor, d_vectors, d_queries = carry

        def add_tile(i: jax.Array, gradients: tuple) -> tuple:
            d_vectors, d_queries = gradients
            part, own = _tile(visitor, hop, i, tile, queries.shape[1])
            scores = _scores(queries, query_ids, part, own)
            d_scores = jnp.exp(scores - log_normaliser[..., None]) * cotangent[..., None]
            d_queries += jnp.einsum("tij,tjd->tid", d_scores, part.vectors)
            d_part = jnp.einsum("tij,tid->tjd", d_scores, queries)
            d_part += jax.lax.dynamic_slice_in_dim(d_vectors, i * tile, tile, axis=1)
            d_vectors = jax.lax.dynamic_update_slice_in_dim(d_vectors, d_part, i * tile, axis=1)
            return d_vectors, d_queries

        tiles = visitor.mask.shape[1] // tile
        d_vectors, d_queries = jax.lax.fori_loop(0, tiles, add_tile, (d_vectors, d_queries))
        visitor, d_vectors = collectives.shift((visitor, d_vectors), axis)
        return visitor, d_vectors, d_queries

    carry = (Keys(vectors, mask, key_ids), jnp.zeros_like(vectors), jnp.zeros_like(queries))
    # As many hops as devices: the keys' gradients end at home.
    _, d_vectors, d_queries = jax.lax.fori_loop(0, collectives.size(axis), visit, carry)
    return d_queries, d_vectors, None, None


_log_normaliser.defvjp(_forward, _backward)


def _tile(
    keys: Keys, hop: jax.Array | int, i: jax.Array, tile: int, rows: int
) -> tuple[Keys, jax.Array]:
    """Keys i * tile .. (i + 1) * tile - 1, and whether each is a query's own: [rows, tile]."""

    def cut(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, i * tile, tile, axis=1)

    own = (jnp.arange(rows)[:, None] == i * tile + jnp.arange(tile)) & (jnp.asarray(hop) == 0)
    return jax.tree.map(cut, keys), own
