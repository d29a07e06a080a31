"""Adam with warm-up, decoupled weight decay and clipping as options, all from optax."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from tssr_jax.catalogue import Catalogue
from tssr_jax.placement import global_norm

_NOT_DECAYED = ("bias", "scale")


def make_optimizer(
    config: ml_collections.ConfigDict, catalogue: Catalogue | None = None
) -> optax.GradientTransformation:
    """Builds the optimiser of section `optimizer` of the config.

    Args:
      config: the section.
      catalogue: how the classes lie on the devices, where gradients hold a part of them.
    """
    schedule: optax.ScalarOrSchedule = config.learning_rate
    if config.warmup_steps:
        schedule = optax.linear_schedule(
            config.learning_rate / config.warmup_steps,
            config.learning_rate,
            max(1, config.warmup_steps - 1),
        )
    stages = []
    if config.clip_norm:
        stages.append(clip_by_norm(config.clip_norm, catalogue))
    stages.append(optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps))
    if config.weight_decay:
        stages.append(optax.add_decayed_weights(config.weight_decay, mask=_decayed))
    stages.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*stages)


def clip_by_norm(max_norm: float, catalogue: Catalogue | None) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` for gradients that may lie on several devices."""

    def clip(grads: Any, params: Any) -> Any:
        del params
        scale = max_norm / jnp.maximum(global_norm(grads, catalogue), max_norm)
        return jax.tree.map(lambda x: x * scale, grads)

    return optax.stateless(clip)


def _decayed(params: Any) -> Any:
    """True for kernels and tables; False for biases, norms and residual scalars."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not path[-1].key.endswith(_NOT_DECAYED), params
    )
