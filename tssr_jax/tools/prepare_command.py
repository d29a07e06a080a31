"""Prepares the data of --config without training, and prints a report.

tssr prepare --config=csv:FOLDER
"""

from absl import flags

from tssr_jax import cli

_CONFIG = cli.config_flag()
_VERBOSE = flags.DEFINE_bool("verbose", False, "Print all numbers of the report.")


def main() -> None:
    """Prints the report and the folder of the prepared data."""
    config = cli.required_config(_CONFIG)
    from tssr_jax.data_pipeline import report
    from tssr_jax.data_pipeline.prepare import prepare

    prepared = prepare(config.data)
    report.show(prepared.report, everything=_VERBOSE.value)
    print(prepared.folder)
