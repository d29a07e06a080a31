"""Memory of the compiled train step per device, for both ways to the negatives of a global batch.

    python -m benchmarks.step_memory --global_batch=8192 --global_batch=65536

Nothing is run: the step is compiled for virtual devices and XLA's memory analysis is printed.
"Temporary" is what a step needs beside parameters, optimiser state and batch.
"""

import time
from collections.abc import Sequence

import jax
from absl import app, flags
from ml_collections import config_flags

from tssr_jax.config.choices import CHOICES
from tssr_jax.tools.sizing import GIB, find_devices, step_size

_CONFIG = config_flags.DEFINE_config_file("config", "configs/default.py", "Model and losses.")
_BATCHES = flags.DEFINE_multi_integer("global_batch", [8192, 65536], "Users over all devices.")
_TOPOLOGIES = flags.DEFINE_multi_string("topology", ["cpu:8"], "cpu:N, or a slice like v5e:2x4.")
_MODEL_DEVICES = flags.DEFINE_integer("model_devices", 1, "Devices that share a catalogue.")
_ITEMS = flags.DEFINE_integer("num_items", 11_758, "Size of the catalogue.", lower_bound=1)
_FEATURES = flags.DEFINE_integer("feature_dim", 384, "Width of the content features.")


def main(argv: Sequence[str]) -> None:
    """Prints one line per case."""
    del argv
    config = _CONFIG.value
    config.model_devices = _MODEL_DEVICES.value
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    for topology in _TOPOLOGIES.value:
        devices = find_devices(topology)
        for config.train.batch_size in _BATCHES.value:
            for config.loss.negatives in CHOICES["loss.negatives"]:
                begin = time.perf_counter()
                size = step_size(config, devices, _ITEMS.value, _FEATURES.value)
                print(
                    f"{topology}, global batch {config.train.batch_size:,}, "
                    f"{config.loss.negatives}: {size.held / GIB:.2f} GiB held, "
                    f"{size.temporary / GIB:.2f} GiB for the step, "
                    f"{size.bytes_sent / 2**20:,.1f} MiB sent by each device "
                    f"(compiled in {time.perf_counter() - begin:.0f} s)",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main)
