"""Prepares the data of --config without training, and prints a report.

tssr prepare --config=csv:FOLDER
tssr prepare --config=csv:FOLDER --features --engine=ray --ray_address=auto
"""

from absl import flags

from tssr_jax import cli, engine_flags
from tssr_jax.engine import OnRay, open_engine, own_errors

_CONFIG = cli.config_flag()
_VERBOSE = flags.DEFINE_bool("verbose", False, "Print all numbers of the report.")
_FEATURES = flags.DEFINE_bool(
    "features", False, "Also encode the items' content and count memories, as a training would."
)
flags.adopt_module_key_flags(engine_flags)


def main() -> None:
    """Prints the report and the folder of the prepared data."""
    config, place = cli.required_config(_CONFIG), engine_flags.place()
    from tssr_jax.data_pipeline import report
    from tssr_jax.data_pipeline.prepare import prepare

    with open_engine(place) as engine:
        if isinstance(engine, OnRay):
            with own_errors(engine.ray):
                prepared = prepare(config.data, engine.ray)
        else:
            prepared = prepare(config.data)
        report.show(prepared.report, everything=_VERBOSE.value)
        if _FEATURES.value:
            from tssr_jax.run import build_run

            if isinstance(engine, OnRay):
                import jax

                jax.config.update("jax_platforms", "cpu")  # accelerators are for the workers
                config.update(num_devices=1, model_devices=1)  # features do not depend on them
            build_run(config, engine=engine)
    print(prepared.folder)
