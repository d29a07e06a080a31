"""Next-item prediction: cross entropy over the whole catalogue (docs/reference/method.md, step 6).

The scores of all positions for all items are never in memory at once. Positions without a label
are moved to the back. The others go through the head in tiles of a few hundred, and each tile's
gradient is computed together with its scores. The loss is linear in the incoming cotangent (a
scalar), so the backward pass only scales the gradients of the forward pass.

If the catalogue is cut over devices, a tile gathers the positions of a group of devices. Each
device scores its own classes, and log-sum-exps and gradients are summed (the vocabulary-parallel
loss of Megatron-LM, arXiv 1909.08053).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tssr_jax.losses.base import LossTerm
from tssr_jax.models.head import HeadWeights
from tssr_jax.models.layers import product
from tssr_jax.parallel import collectives
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.collectives import Axis
from tssr_jax.parallel.platform import platform


class TileSize(NamedTuple):
    """How much is scored at a time.

    Attributes:
      positions: the most positions of a tile.
      scores: a tile with more scores is computed in chunks of classes, and twice.
      chunk: the most scores of a chunk; a chunk has at least one class of each position.
    """

    positions: int
    scores: int
    chunk: int


# A processor is fastest where a tile's scores stay in its cache (16 MiB; chunks of 8): to compute
# them twice takes no longer than to write them to memory (docs/internals/performance.md). Larger
# tiles are for machines whose products are large: by the estimates of the TPU's compiler.
_SMALL = TileSize(256, 2**22, 2**21)
_CHUNKED = TileSize(512, 2**22, 2**21)
_LARGE = TileSize(1536, 2**25, 2**23)


def tile_size(classes: int) -> TileSize:
    """The tile size for the platform and this number of classes on a device."""
    if platform() != "cpu":
        return _LARGE
    return _SMALL if _SMALL.positions * classes <= _SMALL.scores else _CHUNKED


@jax.named_scope("next_item")
def next_item_loss(
    fused: jax.Array,
    weights: HeadWeights,
    labels: jax.Array,
    counted: jax.Array | None = None,
    *,
    importance: jax.Array | None = None,
    exclude_padding_class: bool = True,
    catalogue: Catalogue | None = None,
    rows_axis: Axis = None,
    compute_dtype: str = "float32",
    tile: TileSize | None = None,
) -> LossTerm:
    """Cross entropy of the scores of all classes with the labels, summed over counted positions.

        outputs = encode(model, params, item_sequence, features)
        loss = next_item_loss(outputs.fused, head_weights(model, params, features), labels).mean()

    Args:
      fused: [batch, length, d_model].
      weights: kernel [d_model, num_classes] and bias [num_classes], of the classes of this device.
      labels: int [batch, length]; read where `counted` is True.
      counted: bool [batch, length]; by default positions whose label is an item.
      importance: [batch, length], what the loss of a counted position is multiplied by, 0 or more;
        the term's weight is their sum. By default all are 1.
      exclude_padding_class: class 0 does not compete in the softmax.
      catalogue: how the classes lie on the devices; by default all on each device.
      rows_axis: the device axis that the batch is cut along; None on one device.
      compute_dtype: of the inputs of products, forward and backward; all else is float32.
      tile: how much is scored at a time; by default what `tile_size` says.

    Returns:
      This device's share. (Devices that hold parts of one catalogue share their sum equally.)
    """
    counted = labels > 0 if counted is None else counted
    catalogue = Catalogue(weights.bias.size - 1) if catalogue is None else catalogue
    num_positions = labels.size
    tile = tile or tile_size(catalogue.shard_classes)
    most = max(1, tile.positions // catalogue.num_shards)
    size = -(-num_positions // -(-num_positions // most))  # as equal as can be
    order, count = counted_first(counted)
    order = jnp.pad(order, (0, -num_positions % size))
    states = fused.reshape(num_positions, -1)[order]
    targets = _Targets(
        labels.reshape(-1)[order], None if importance is None else importance.reshape(-1)[order]
    )
    classes = catalogue.classes()
    competes = (classes < catalogue.num_classes) & ((classes > 0) | (not exclude_padding_class))
    bias = jnp.where(competes, weights.bias, -jnp.inf)
    rows = size * catalogue.num_shards
    chunk = catalogue.shard_classes
    if rows * chunk > tile.scores:
        chunk = max(1, min(tile.chunk, tile.scores) // rows)
    tiles = _Tiles(catalogue, rows_axis, size, chunk, compute_dtype)
    total = _sum_cross_entropy(states, weights.kernel, bias, targets, count, tiles)
    weight = count if importance is None else jnp.where(counted, importance, 0.0).sum()
    return LossTerm(total / catalogue.num_shards, weight.astype(total.dtype))


def counted_first(counted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The order that puts counted positions first, int [counted.size], and their number."""
    return jnp.argsort(~counted.reshape(-1), stable=True), counted.sum()


class _Targets(NamedTuple):
    """Labels int [positions], and what each loss is multiplied by; None is 1."""

    labels: jax.Array
    importance: jax.Array | None

    def weighted(self, values: jax.Array) -> jax.Array:
        """Values [positions, ...] times the importance of their positions."""
        if self.importance is None:
            return values
        return values * self.importance.reshape(-1, *(1,) * (values.ndim - 1))


class _Tiles(NamedTuple):
    """Computes losses and gradients tile by tile.

    Attributes:
      catalogue: how the classes lie on the devices.
      rows_axis: the device axis that the batch is cut along.
      size: positions of each device at a time.
      chunk: classes of a device at a time.
      compute_dtype: of products.
    """

    catalogue: Catalogue
    rows_axis: Axis
    size: int
    chunk: int
    compute_dtype: str

    def number(self, count: jax.Array) -> jax.Array:
        """Number of tiles with a position that counts; equal on the devices of a group."""
        own = (count + self.size - 1) // self.size
        return own if self.catalogue.axis is None else collectives.pmax(own, self.rows_axis)

    def cut(
        self, states: jax.Array, targets: _Targets, count: jax.Array, i: jax.Array
    ) -> tuple[jax.Array, _Targets, jax.Array]:
        """The group's i-th tile: states, targets, and which of them count."""
        start = i * self.size
        states, targets = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, self.size), (states, targets)
        )
        counts = start + jnp.arange(self.size) < count
        return self.catalogue.gather_rows((states, targets, counts))

    def losses(
        self, x: jax.Array, y: jax.Array, kernel: jax.Array, bias: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Cross entropy, and log-sum-exp of all scores, of a tile's positions: both [rows]."""

        def add(carry: tuple[jax.Array, ...], chunk: _Chunk) -> tuple[jax.Array, ...]:
            highest, total, own = carry
            scores = chunk.scores(x, self.compute_dtype)
            new_highest = jnp.maximum(highest, scores.max(axis=1))
            # Where all classes so far are excluded, the highest score is -inf.
            safe = jnp.where(jnp.isfinite(new_highest), new_highest, 0.0)
            total = total * jnp.exp(highest - safe) + jnp.exp(scores - safe[:, None]).sum(axis=1)
            return new_highest, total, own + chunk.pick(scores, y)

        start = jnp.full(x.shape[:1], -jnp.inf), jnp.zeros(x.shape[:1]), jnp.zeros(x.shape[:1])
        highest, total, own = self._over_chunks(add, start, kernel, bias)
        catalogue = self.catalogue
        if catalogue.axis is not None:
            everywhere = collectives.pmax(highest, catalogue.axis)
            total = catalogue.sum(total * jnp.exp(highest - everywhere))
            highest, own = everywhere, catalogue.sum(own)
        log_normaliser = highest + jnp.log(total)
        return log_normaliser - own, log_normaliser

    def add_gradients(
        self,
        x: jax.Array,
        weights: tuple[jax.Array, jax.Array],
        gradient: Callable[[jax.Array, jax.Array], jax.Array],
        d_weights: tuple[jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The tile's gradient of its states; the gradients of kernel and bias, with its share."""
        kernel, bias = weights

        def add(carry: tuple[jax.Array, ...], chunk: _Chunk) -> tuple[jax.Array, ...]:
            d_x, d_kernel, d_bias = carry
            d_scores = gradient(chunk.scores(x, self.compute_dtype), chunk.classes)
            d_scores = jnp.where(chunk.fresh, d_scores, 0.0)
            d_x += product(d_scores, chunk.kernel.T, self.compute_dtype)
            d_own = product(x.T, d_scores, self.compute_dtype)
            return (
                d_x,
                chunk.added(d_kernel, d_own, axis=1),
                chunk.added(d_bias, d_scores.sum(axis=0), axis=0),
            )

        d_x, d_kernel, d_bias = self._over_chunks(
            add, (jnp.zeros_like(x), *d_weights), kernel, bias
        )
        return self.catalogue.own_rows_of_sum(d_x), d_kernel, d_bias

    def _over_chunks(
        self,
        body: Callable[[tuple[jax.Array, ...], "_Chunk"], tuple[jax.Array, ...]],
        carry: tuple[jax.Array, ...],
        kernel: jax.Array,
        bias: jax.Array,
    ) -> tuple[jax.Array, ...]:
        classes = self.catalogue.classes()
        if self.chunk >= bias.size:
            return body(carry, _Chunk(None, kernel, bias, classes, jnp.array(True)))

        def visit(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            # The last chunk overlaps the one before it, whose classes it leaves alone.
            start = jnp.minimum(i * self.chunk, bias.size - self.chunk)
            fresh = start + jnp.arange(self.chunk) >= i * self.chunk

            def cut(x: jax.Array, axis: int) -> jax.Array:
                return jax.lax.dynamic_slice_in_dim(x, start, self.chunk, axis)

            own_bias = jnp.where(fresh, cut(bias, 0), -jnp.inf)
            return body(carry, _Chunk(start, cut(kernel, 1), own_bias, cut(classes, 0), fresh))

        return jax.lax.fori_loop(0, -(-bias.size // self.chunk), visit, carry)


class _Chunk(NamedTuple):
    """Some of a device's classes.

    Attributes:
      start: index of the first class; None if the chunk has all classes.
      kernel: kernel of these classes.
      bias: bias of these classes; -inf where a class does not compete, or is not fresh.
      classes: ids of these classes.
      fresh: bool, whether no earlier chunk has the class.
    """

    start: jax.Array | None
    kernel: jax.Array
    bias: jax.Array
    classes: jax.Array
    fresh: jax.Array

    def scores(self, x: jax.Array, compute_dtype: str) -> jax.Array:
        """[rows, classes of the chunk]."""
        return product(x, self.kernel, compute_dtype) + self.bias

    def pick(self, scores: jax.Array, y: jax.Array) -> jax.Array:
        """Each row's score of class y; 0 if y is not a fresh class of this chunk."""
        place = y - self.classes[0]
        first = self.classes.size - jnp.sum(self.fresh) if self.start is not None else 0
        inside = (place >= first) & (place < self.classes.size)
        place = jnp.where(inside, place, 0)
        return jnp.where(inside, jnp.take_along_axis(scores, place[:, None], axis=1)[:, 0], 0.0)

    def added(self, whole: jax.Array, own: jax.Array, axis: int) -> jax.Array:
        """The whole with these classes' values added along an axis."""
        if self.start is None:
            return whole + own
        before = jax.lax.dynamic_slice_in_dim(whole, self.start, own.shape[axis], axis)
        return jax.lax.dynamic_update_slice_in_dim(whole, before + own, self.start, axis)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _sum_cross_entropy(  # noqa: PLR0917
    states: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    targets: _Targets,
    count: jax.Array,
    tiles: _Tiles,
) -> jax.Array:
    """Sum over the first `count` rows of states [positions, d_model] of each device of the group.

    All devices of the group get the same sum, and must give the same cotangent.
    """

    def body(i: jax.Array, total: jax.Array) -> jax.Array:
        x, y, counts = tiles.cut(states, targets, count, i)
        losses, _ = tiles.losses(x, y.labels, kernel, bias)
        return total + jnp.where(counts, y.weighted(losses), 0.0).sum()

    return jax.lax.fori_loop(0, tiles.number(count), body, jnp.zeros((), states.dtype))


def _forward(  # noqa: PLR0917
    states: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    targets: _Targets,
    count: jax.Array,
    tiles: _Tiles,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:

    def body(
        i: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        total, d_states, d_kernel, d_bias = carry
        x, y, counts = tiles.cut(states, targets, count, i)
        losses, log_normaliser = tiles.losses(x, y.labels, kernel, bias)

        def gradient(scores: jax.Array, classes: jax.Array) -> jax.Array:
            probabilities = jnp.exp(scores - log_normaliser[:, None])
            gradients = y.weighted(probabilities - (classes == y.labels[:, None]))
            return jnp.where(counts[:, None], gradients, 0.0)

        d_tile, d_kernel, d_bias = tiles.add_gradients(
            x, (kernel, bias), gradient, (d_kernel, d_bias)
        )
        return (
            total + jnp.where(counts, y.weighted(losses), 0.0).sum(),
            jax.lax.dynamic_update_slice_in_dim(d_states, d_tile, i * tiles.size, 0),
            d_kernel,
            d_bias,
        )

    start = (
        jnp.zeros((), states.dtype),
        jnp.zeros_like(states),
        jnp.zeros_like(kernel),
        jnp.zeros_like(bias),
    )
    total, *gradients = jax.lax.fori_loop(0, tiles.number(count), body, start)
    return total, tuple(gradients)


def _backward(
    tiles: _Tiles, gradients: tuple[jax.Array, jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array | None, ...]:
    # Each device's share of the loss is the group's sum divided by the number of shards, and so is
    # its cotangent: multiply to restore the whole.
    d_states, d_kernel, d_bias = (cotangent * tiles.catalogue.num_shards * g for g in gradients)
    return d_states, d_kernel, d_bias, None, None


_sum_cross_entropy.defvjp(_forward, _backward)
