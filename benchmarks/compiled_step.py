"""The compiled train step of a configuration on virtual devices, of which nothing is run."""

from typing import Any

import jax
import jax.numpy as jnp

from tssr_jax import placement
from tssr_jax.experiment import make_model
from tssr_jax.optimizer import make_optimizer
from tssr_jax.parallel import CLASSES, ROWS, Devices
from tssr_jax.train_state import create_train_state, init_params, make_train_step

GIB = 2**30


def compile_step(  # noqa: PLR0917
    config: Any,
    num_devices: int,
    rows: int,
    num_items: int,
    feature_dim: int,
    model_devices: int = 1,
) -> Any:
    """Compiles the step of `rows` users; `memory_analysis()` and `as_text()` tell about it."""
    devices = Devices("shard_map", num_devices, model_devices)
    model = make_model(config, devices.catalogue(num_items), devices.rows_axis)
    catalogue = model.catalogue
    optimizer = make_optimizer(config.optimizer, catalogue)
    features = jax.ShapeDtypeStruct((catalogue.padded_classes, feature_dim), jnp.float32)

    def start() -> Any:
        return create_train_state(init_params(model, features, config.seed), optimizer, config)

    window = jax.ShapeDtypeStruct((rows, config.model.max_length), jnp.int32)
    row_mask = jax.ShapeDtypeStruct((rows,), jnp.bool_)
    batch = {"item_sequence": window, "labels": window, "row_mask": row_mask}
    state = jax.eval_shape(start)
    layout = placement.layout(state)
    step: Any = devices.run(
        make_train_step(model, optimizer, config),
        inputs=(layout, ROWS, CLASSES),
        output=layout,
        donate=(0,),
    )
    return step.lower(state, batch, features).compile()
