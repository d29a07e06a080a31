"""Searches settings by validation NDCG@10 with Optuna.

tssr search --trials=30 --trial_minutes=20 --config=csv:FOLDER --workdir=runs/search
"""

from absl import flags

from tssr_jax import cli
from tssr_jax.config.saved import require_no_run
from tssr_jax.locks import one_writer
from tssr_jax.studies import pace_flags

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag()
_TRIALS = flags.DEFINE_integer("trials", 20, "Trials in all.", 1)
flags.adopt_module_key_flags(pace_flags)


def main() -> None:
    """Runs the search, or goes on with it."""
    config, workdir = cli.required_config(_CONFIG), cli.required_workdir(_WORKDIR)
    require_no_run(workdir)
    with one_writer(workdir):
        from tssr_jax.studies.search import search
        from tssr_jax.studies.slots import Pace

        search(config, workdir, _TRIALS.value, Pace(*pace_flags.limits()))
