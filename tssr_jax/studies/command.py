"""Trains several configurations with several seeds and compares them, with statistics.

    tssr study --study=baselines --seeds=3 --config=csv:FOLDER --workdir=runs/study

The same command goes on where it stopped (docs/guides/studies.md).
"""

from absl import flags

from tssr_jax import cli
from tssr_jax.config.saved import require_no_run
from tssr_jax.locks import one_writer
from tssr_jax.studies import pace_flags

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag()
_STUDY = flags.DEFINE_string(
    "study", "ablation", "Name of the study; docs/guides/studies.md lists them."
)
_VARIANT = flags.DEFINE_multi_string("variant", [], "Run only this variant; by default all")
_SEEDS = flags.DEFINE_integer(
    "seeds",
    3,
    "Number of seeds of each variant, from --config.seed (with --tune_trials, from the next).",
    1,
)
_TUNE_TRIALS = flags.DEFINE_integer(
    "tune_trials", 0, "First search each variant's own settings by this many trials; 0: none.", 0
)
_REFIT = flags.DEFINE_bool(
    "refit", False, "Also refit each trial (`tssr refit`); the report has both."
)
flags.adopt_module_key_flags(pace_flags)


def main() -> None:
    """Runs the study, or goes on with it."""
    config, workdir = cli.required_config(_CONFIG), cli.required_workdir(_WORKDIR)
    names, tune = _VARIANT.value, _TUNE_TRIALS.value
    require_no_run(workdir)
    with one_writer(workdir):
        from tssr_jax.studies.runner import run_study
        from tssr_jax.studies.slots import Pace

        pace = Pace(*pace_flags.limits())
        run_study(
            *(_STUDY.value, config, workdir, _SEEDS.value, names),
            pace=pace,
            tune_trials=tune,
            refit=_REFIT.value,
        )
