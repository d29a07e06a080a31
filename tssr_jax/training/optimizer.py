"""Adam with warm-up, decoupled weight decay and clipping as options, all from optax."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from tssr_jax.content.trained import parameters_name
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.sharding import global_norm

if TYPE_CHECKING:
    from tssr_jax.run import Run

# Last names of the parameters without weight decay; the last two are statistics.
_NOT_DECAYED = ("bias", "scale", "factors", "frequency", "mean", "var")

# Ratio of a layer's step size to the next higher layer's, of a content encoder.
_LAYER_DECAY = 0.9


class EncoderSteps(NamedTuple):
    """Step sizes of a content encoder that is trained.

    Attributes:
      learning_rate: step size of its top layer.
      depth: maps the name of parameters to the number of layers above them.
    """

    learning_rate: float
    depth: Callable[[str], int]


def optimizer_of(run: "Run") -> optax.GradientTransformation:
    """The optimiser that the configuration of a run asks for."""
    encoders = {
        parameters_name(name): EncoderSteps(run.config.content[name].learning_rate, encoder.depth)
        for name, encoder in run.trained.items()
    }
    return make_optimizer(run.config.optimizer, run.model.classes, encoders)


def make_optimizer(
    config: ml_collections.ConfigDict,
    catalogue: Catalogue | None = None,
    encoders: Mapping[str, EncoderSteps] | None = None,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Builds the optimiser of section `optimizer` of the config.

    Args:
      config: the section.
      catalogue: how the classes lie on the devices, if gradients hold only a part of them.
      encoders: content encoders that are trained, by the names of their parameters.
      eps: Adam's.
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
    stages.append(optax.scale_by_adam(eps=eps))
    if config.weight_decay:
        stages.append(optax.add_decayed_weights(config.weight_decay, mask=_decayed))
    if encoders:
        stages.append(_encoder_step_sizes(encoders, config.learning_rate))
    stages.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*stages)


def clip_by_norm(max_norm: float, catalogue: Catalogue | None) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` for gradients that may lie on several devices."""

    def clip(grads: Any, params: Any) -> Any:
        del params
        scale = max_norm / jnp.maximum(global_norm(grads, catalogue), max_norm)
        return jax.tree.map(lambda x: x * scale, grads)

    return optax.stateless(clip)


def _encoder_step_sizes(
    encoders: Mapping[str, EncoderSteps], learning_rate: float
) -> optax.GradientTransformation:
    """Gives content encoders their own step sizes, smaller for lower layers."""

    def scale(updates: Any, params: Any) -> Any:
        del params
        scaled = dict(updates)
        for encoder, steps in encoders.items():
            top = steps.learning_rate / learning_rate
            scaled[encoder] = {
                name: optax.tree.scale(top * _LAYER_DECAY ** steps.depth(name), layer)
                for name, layer in updates[encoder].items()
            }
        return scaled

    return optax.stateless(scale)


def _decayed(params: Any) -> Any:
    """True for kernels and tables; False for biases, norms, residual scalars, memories' gates."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not path[-1].key.endswith(_NOT_DECAYED), params
    )
