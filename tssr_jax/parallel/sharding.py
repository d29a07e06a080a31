"""Layout of the arrays of a train state that have one row (or column) per class.

These are the item table, the prediction head, and their optimiser state and average. The end of an
array's path identifies it, which works for parameters, gradients and states.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from tssr_jax.parallel import collectives
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.collectives import Axis
from tssr_jax.parallel.devices import MODEL_AXIS, WHOLE

# The last two names of a parameter's path -> the dimension that counts classes.
_CLASS_DIMENSIONS = {
    "token_embedding/embedding": 0,
    "output/kernel": 1,
    "output/bias": 0,
}
# Suffix of the names of content encoders' parameters: these have an "output", too, but no classes.
ENCODER_SUFFIX = "_encoder"


def path_names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The names along a path of a pytree."""
    return tuple(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def class_dimension(names: tuple[str, ...]) -> int | None:
    """The dimension of an array that counts classes; None if there is none."""
    if any(name.endswith(ENCODER_SUFFIX) for name in names):
        return None
    return _CLASS_DIMENSIONS.get("/".join(names[-2:]))


def _map(function: Callable[[Any, int | None], Any], tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, x: function(x, class_dimension(path_names(path))), tree
    )


def layout(tree: Any) -> Any:
    """Partition specs of all arrays: cut along the model axis, or whole on each device."""

    def spec(_: Any, dimension: int | None) -> PartitionSpec:
        return WHOLE if dimension is None else PartitionSpec(*[None] * dimension, MODEL_AXIS)

    return _map(spec, tree)


def placed_shapes(shapes: Any, shardings: Any) -> Any:
    """A tree of `jax.ShapeDtypeStruct`, with the sharding of each."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def pad_classes(tree: Any, catalogue: Catalogue) -> Any:
    """Pads arrays with zeros from `num_classes` to `padded_classes`."""

    def pad(x: jax.Array, dimension: int | None) -> jax.Array:
        if dimension is None:
            return x
        widths = [(0, 0)] * x.ndim
        widths[dimension] = (0, catalogue.padded_classes - x.shape[dimension])
        return jnp.pad(x, widths)

    return _map(pad, tree)


def sum_gradients(grads: Any, catalogue: Catalogue, rows_axis: Axis) -> Any:
    """Adds up the devices' shares of the gradient.

    A shard's gradient already includes the rows of its whole group.
    """
    others = collectives.without(rows_axis, catalogue.axis)

    def reduce(x: jax.Array, dimension: int | None) -> jax.Array:
        return collectives.psum(x, rows_axis if dimension is None else others)

    return _map(reduce, grads)


def global_norm(tree: Any, catalogue: Catalogue | None) -> jax.Array:
    """L2 norm of all values of a tree, those on the other shards included."""

    def squared(x: jax.Array, dimension: int | None) -> jax.Array:
        total = jnp.square(x).sum()
        return total if dimension is None or catalogue is None else catalogue.sum(total)

    return jnp.sqrt(jnp.stack(jax.tree.leaves(_map(squared, tree))).sum())
