"""Memory of the compiled train step per device, for both ways to the negatives of a global batch.

    python -m benchmarks.negatives_memory --global_batch=8192 --global_batch=65536

Nothing is run: the step is compiled for virtual devices and XLA's memory analysis is printed.
"Temporary" is what a step needs beside parameters, optimiser state and batch.
"""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import config_flags

from tssr_jax.experiment import make_model
from tssr_jax.losses.info_nce import NEGATIVES
from tssr_jax.optimizer import make_optimizer
from tssr_jax.parallel import DATA_AXIS, ROWS, WHOLE, DataParallel
from tssr_jax.train_state import create_train_state, init_params, make_train_step

_CONFIG = config_flags.DEFINE_config_file("config", "configs/default.py", "Model and losses.")
_BATCHES = flags.DEFINE_multi_integer("global_batch", [8192, 65536], "Users over all devices.")
_DEVICES = flags.DEFINE_multi_integer("devices", [8], "Virtual devices.")
_ITEMS = flags.DEFINE_integer("num_items", 11_758, "Size of the catalogue.", lower_bound=1)
_FEATURES = flags.DEFINE_integer("feature_dim", 384, "Width of the content features.")
_GIB = 2**30


def compile_step(config: Any, num_devices: int, rows: int) -> Any:
    """The compiled train step of `rows` users on virtual devices."""
    model, optimizer = make_model(config, _ITEMS.value, DATA_AXIS), make_optimizer(config.optimizer)
    features = jax.ShapeDtypeStruct((_ITEMS.value + 1, _FEATURES.value), jnp.float32)

    def start(features: jax.Array) -> Any:
        return create_train_state(init_params(model, features, config.seed), optimizer, config)

    window = jax.ShapeDtypeStruct((rows, config.model.max_length), jnp.int32)
    row_mask = jax.ShapeDtypeStruct((rows,), jnp.bool_)
    batch = {"item_sequence": window, "labels": window, "row_mask": row_mask}
    step: Any = DataParallel("shard_map", num_devices).run(
        make_train_step(model, optimizer, config, DATA_AXIS),
        inputs=(WHOLE, ROWS, WHOLE),
        output=WHOLE,
        donate=(0,),
    )
    return step.lower(jax.eval_shape(start, features), batch, features).compile()


def main(argv: Sequence[str]) -> None:
    """Prints one line per case."""
    del argv
    jax.config.update("jax_num_cpu_devices", max(_DEVICES.value))
    config = _CONFIG.value
    for rows in _BATCHES.value:
        for num_devices in _DEVICES.value:
            for config.loss.negatives in NEGATIVES:
                begin = time.perf_counter()
                memory = compile_step(config, num_devices, rows).memory_analysis()
                print(
                    f"global batch {rows:,} on {num_devices} devices, {config.loss.negatives}: "
                    f"temporary {memory.temp_size_in_bytes / _GIB:.2f} GiB, arguments "
                    f"{memory.argument_size_in_bytes / _GIB:.2f} GiB per device "
                    f"(compiled in {time.perf_counter() - begin:.0f} s)",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main)
