"""Memory of the compiled train step per device, for both ways to the negatives of a global batch.

    python -m benchmarks.negatives_memory --global_batch=8192 --global_batch=65536

Nothing is run: the step is compiled for virtual devices and XLA's memory analysis is printed.
"Temporary" is what a step needs beside parameters, optimiser state and batch.
"""

import time
from collections.abc import Sequence

import jax
from absl import app, flags
from ml_collections import config_flags

from benchmarks.compiled_step import GIB, compile_step
from tssr_jax.losses.info_nce import NEGATIVES

_CONFIG = config_flags.DEFINE_config_file("config", "configs/default.py", "Model and losses.")
_BATCHES = flags.DEFINE_multi_integer("global_batch", [8192, 65536], "Users over all devices.")
_DEVICES = flags.DEFINE_multi_integer("devices", [8], "Virtual devices.")
_MODEL_DEVICES = flags.DEFINE_integer("model_devices", 1, "Those that share a catalogue.")
_ITEMS = flags.DEFINE_integer("num_items", 11_758, "Size of the catalogue.", lower_bound=1)
_FEATURES = flags.DEFINE_integer("feature_dim", 384, "Width of the content features.")


def main(argv: Sequence[str]) -> None:
    """Prints one line per case."""
    del argv
    jax.config.update("jax_num_cpu_devices", max(_DEVICES.value))
    config = _CONFIG.value
    for rows in _BATCHES.value:
        for num_devices in _DEVICES.value:
            for config.loss.negatives in NEGATIVES:
                begin = time.perf_counter()
                memory = compile_step(
                    config,
                    num_devices,
                    rows,
                    _ITEMS.value,
                    _FEATURES.value,
                    _MODEL_DEVICES.value,
                ).memory_analysis()
                print(
                    f"global batch {rows:,} on {num_devices} devices, {config.loss.negatives}: "
                    f"temporary {memory.temp_size_in_bytes / GIB:.2f} GiB, arguments "
                    f"{memory.argument_size_in_bytes / GIB:.2f} GiB per device "
                    f"(compiled in {time.perf_counter() - begin:.0f} s)",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main)
