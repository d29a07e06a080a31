"""How two streams become one prediction: a gate (docs/reference/method.md, step 5), or experts.

Where one loss trains a mixture of streams, the stream that learns faster explains what it can and
the other one stops learning (Wang et al., "What makes training multi-modal networks hard?", arXiv
1905.12681). With experts each stream, and the gate, has a loss of its own:

    id        the id stream after its self-attention, scored by the items' id vectors
    content   the content stream after its self-attention, scored by the items' content vectors
    joint     the gate's mixture of both after cross-attention, scored by the vectors' sum

An item's score is the mean of the experts' scores. It is the logarithm of the geometric mean of
their predictions, up to a constant for each history (a product of experts; Hinton, Neural
Computation 2002), and a single product:

    [F_id + F, F_con + F] . [e_id, e_con] / 3

Where the id stream reads content as well (`model.id_reads_content`), its expert scores by the
vectors' sum: [F_id + F, F_con + F_id + F] . [e_id, e_con] / 3.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from tssr_jax.models import initializers
from tssr_jax.models.head import HeadWeights
from tssr_jax.models.layers import product


class Gate(nn.Module):
    """`g = sigmoid(W [F_id, F_con] + b)`, `F = g * F_id + (1 - g) * F_con`, element-wise."""

    compute_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, id_state: jax.Array, content_state: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mixes two states of shape [batch, length, d_model].

        Returns:
          The gate (weight of the id stream, in (0, 1)) and the fused state, both
          [batch, length, d_model].
        """
        d_model = id_state.shape[-1]
        kernel = self.param("kernel", initializers.dense_kernel, (2 * d_model, d_model))
        bias = self.param("bias", initializers.dense_bias, (d_model,))
        states = jnp.concatenate([id_state, content_state], axis=-1)
        gate = nn.sigmoid(product(states, kernel, self.compute_dtype) + bias)
        return gate, gate * id_state + (1.0 - gate) * content_state


class Concatenation(nn.Module):
    """`F = W [F_id, F_con] + b`: as many parameters as the gate, but the states are not kept."""

    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, id_state: jax.Array, content_state: jax.Array) -> jax.Array:
        """Mixes two states of shape [batch, length, d_model] to one."""
        d_model = id_state.shape[-1]
        kernel = self.param("kernel", initializers.dense_kernel, (2 * d_model, d_model))
        bias = self.param("bias", initializers.dense_bias, (d_model,))
        states = jnp.concatenate([id_state, content_state], axis=-1)
        return product(states, kernel, self.compute_dtype) + bias


EXPERTS = ("id", "content", "joint")


def pool(states: Mapping[str, jax.Array], *, id_reads_content: bool = False) -> jax.Array:
    """The head's input for which scores are the mean of the experts' scores.

    Args:
      states: states of some of `EXPERTS`, each [..., d_model]; the others count as zeros.
      id_reads_content: whether the id stream reads content, too.

    Returns:
      [..., 2 * d_model], divided by the number of experts in `states`.
    """
    nothing = jnp.zeros_like(next(iter(states.values())))
    by_id, by_content, joint = (states.get(name, nothing) for name in EXPERTS)
    if id_reads_content:
        by_content = by_content + by_id
    return jnp.concatenate([by_id + joint, by_content + joint], axis=-1) / len(states)


def weights_of_each(
    weights: HeadWeights, *, id_reads_content: bool = False
) -> dict[str, HeadWeights]:
    """Head weights of each of `EXPERTS`.

    Args:
      weights: weights of the head, whose kernel is [2 * d_model, shard_classes].
      id_reads_content: whether the id stream reads content, too.

    Returns:
      By expert, weights with a kernel [d_model, shard_classes]; all share the bias.
    """
    id_vectors, content_vectors = jnp.split(weights.kernel, 2)
    both = id_vectors + content_vectors
    by_id = both if id_reads_content else id_vectors
    kernels = {"id": by_id, "content": content_vectors, "joint": both}
    return {name: weights._replace(kernel=kernel) for name, kernel in kernels.items()}
