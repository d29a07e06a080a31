"""Adam with warm-up, decoupled weight decay and clipping as options, all from optax."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from tssr_jax.catalogue import Catalogue
from tssr_jax.placement import global_norm

# The parameters of a trained text encoder, beside those of the model.
TEXT_ENCODER = "text_encoder"
_NOT_DECAYED = ("bias", "scale")


def make_optimizer(
    config: ml_collections.ConfigDict,
    catalogue: Catalogue | None = None,
    content: ml_collections.ConfigDict | None = None,
) -> optax.GradientTransformation:
    """Builds the optimiser of section `optimizer` of the config.

    Args:
      config: the section.
      catalogue: how the classes lie on the devices, where gradients hold a part of them.
      content: section `content`, if a content encoder is trained.
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
    if content is not None:
        stages.append(_encoder_steps(content, config.learning_rate))
    stages.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*stages)


def clip_by_norm(max_norm: float, catalogue: Catalogue | None) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` for gradients that may lie on several devices."""

    def clip(grads: Any, params: Any) -> Any:
        del params
        scale = max_norm / jnp.maximum(global_norm(grads, catalogue), max_norm)
        return jax.tree.map(lambda x: x * scale, grads)

    return optax.stateless(clip)


def _encoder_steps(
    content: ml_collections.ConfigDict, learning_rate: float
) -> optax.GradientTransformation:
    """Gives a content encoder its own step size, smaller for lower layers, 0 at first."""

    def init(params: Any) -> jax.Array:
        del params
        return jnp.zeros((), jnp.int32)

    def update(updates: Any, count: jax.Array, params: Any) -> tuple[Any, jax.Array]:
        del params
        trained = (count >= content.train_from_step) * content.learning_rate / learning_rate
        layers = updates[TEXT_ENCODER]
        top = max([int(name.removeprefix("layer_")) for name in layers if "layer_" in name])
        scaled = {}
        for name, tree in layers.items():
            depth = top + 1
            if name.startswith("layer_"):
                depth = top - int(name.removeprefix("layer_"))
            elif name == "pooler_dense":
                depth = 0
            scale = trained * content.layer_decay**depth
            scaled[name] = jax.tree.map(lambda x, scale=scale: scale * x, tree)
        return {**updates, TEXT_ENCODER: scaled}, count + 1

    return optax.GradientTransformation(init, update)


def _decayed(params: Any) -> Any:
    """True for kernels and tables; False for biases, norms and residual scalars."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not path[-1].key.endswith(_NOT_DECAYED), params
    )
