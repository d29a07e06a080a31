"""Prints the memory and traffic of a training step on devices that need not be present.

tssr size --config=ml1m --topology=v5e:2x4 --global_batch=1024
"""

from absl import flags

from tssr_jax import cli

_CONFIG = cli.config_flag()
_TOPOLOGY = flags.DEFINE_multi_string(
    "topology", ["cpu:8"], "Devices, cpu:N or a slice of TPUs like v5e:2x4"
)
_GLOBAL_BATCH = flags.DEFINE_multi_integer(
    "global_batch", [], "Users in a step; by default --config.train.batch_size"
)
_NUM_ITEMS = flags.DEFINE_integer(
    "num_items", 0, "Size of the catalogue; 0 prepares the data and takes its size.", 0
)
_FEATURE_DIM = flags.DEFINE_integer("feature_dim", 384, "Width of the content features.", 1)


def main() -> None:
    """Prints a table."""
    config = cli.required_config(_CONFIG)
    from tssr_jax.tools.sizing import report

    batches = _GLOBAL_BATCH.value
    report(config, _TOPOLOGY.value, batches, _NUM_ITEMS.value, _FEATURE_DIM.value)
