"""Adam with warm-up, decoupled weight decay and clipping as options, all from optax."""

from typing import Any

import jax
import ml_collections
import optax

_NOT_DECAYED = ("bias", "scale")


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Builds the optimiser of section `optimizer` of the config."""
    schedule: optax.ScalarOrSchedule = config.learning_rate
    if config.warmup_steps:
        schedule = optax.linear_schedule(
            config.learning_rate / config.warmup_steps,
            config.learning_rate,
            max(1, config.warmup_steps - 1),
        )
    stages = []
    if config.clip_norm:
        stages.append(optax.clip_by_global_norm(config.clip_norm))
    stages.append(optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps))
    if config.weight_decay:
        stages.append(optax.add_decayed_weights(config.weight_decay, mask=_decayed))
    stages.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*stages)


def _decayed(params: Any) -> Any:
    """True for kernels and tables; False for biases, norms and residual scalars."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not path[-1].key.endswith(_NOT_DECAYED), params
    )
