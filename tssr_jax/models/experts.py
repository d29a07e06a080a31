"""Two streams and their gate as three experts: each predicts by itself, their scores are averaged.

Where one loss trains a mixture of streams, the stream that learns faster explains what it can and
the other one stops learning (Wang et al., "What makes training multi-modal networks hard?", arXiv
1905.12681). Here each expert has a loss of its own:

    id        the id stream after its self-attention, scored by the items' id vectors
    content   the content stream after its self-attention, scored by the items' content vectors
    joint     what the gate makes of both after cross-attention, scored by the vectors' sum

The mean of their scores is the logarithm of the geometric mean of what they predict, up to a
constant for each history (a product of experts; Hinton, Neural Computation 2002), one product:

    [F_id + F, F_con + F] . [e_id, e_con] / 3

Where the id stream reads content as well (`model.id_reads_content`), its expert scores by what it
reads, the vectors' sum: [F_id + F, F_con + F_id + F] . [e_id, e_con] / 3.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tssr_jax.models.head import HeadWeights

EXPERTS = ("id", "content", "joint")


def pool(states: Mapping[str, jax.Array], *, id_reads_content: bool = False) -> jax.Array:
    """What the head reads so that scores are the mean of the experts'.

    Args:
      states: of some of `EXPERTS`, each [..., d_model]; the others count as zeros.
      id_reads_content: whether the id stream reads content, too.

    Returns:
      [..., 2 * d_model], over the number of experts in `states`.
    """
    nothing = jnp.zeros_like(next(iter(states.values())))
    by_id, by_content, joint = (states.get(name, nothing) for name in EXPERTS)
    if id_reads_content:
        by_content = by_content + by_id
    return jnp.concatenate([by_id + joint, by_content + joint], axis=-1) / len(states)


def weights_of_each(
    weights: HeadWeights, *, id_reads_content: bool = False
) -> dict[str, HeadWeights]:
    """What scores the states of `EXPERTS`.

    Args:
      weights: of the head, whose kernel is [2 * d_model, shard_classes].
      id_reads_content: whether the id stream reads content, too.

    Returns:
      By expert, weights with a kernel [d_model, shard_classes]; all share the bias.
    """
    id_vectors, content_vectors = jnp.split(weights.kernel, 2)
    both = id_vectors + content_vectors
    by_id = both if id_reads_content else id_vectors
    kernels = {"id": by_id, "content": content_vectors, "joint": both}
    return {name: weights._replace(kernel=kernel) for name, kernel in kernels.items()}
