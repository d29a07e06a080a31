"""Flags that a study and a search share: how long, how many at once, and where trials run."""

from absl import flags

from tssr_jax import engine_flags
from tssr_jax.engine import Place

_TRIAL_MINUTES = flags.DEFINE_float(
    "trial_minutes", 0.0, "Minutes that a training may take; 0 is no limit.", 0.0
)
_TRIALS_AT_ONCE = flags.DEFINE_integer(
    "trials_at_once", 1, "Trials side by side on this machine, each on its share of the cores.", 1
)
_PRUNE = flags.DEFINE_bool(
    "prune", False, "Searches only: stop trials early that are below the median of the others."
)
flags.declare_key_flag("prune")
flags.declare_key_flag("trial_minutes")
flags.declare_key_flag("trials_at_once")
flags.adopt_module_key_flags(engine_flags)


def limits() -> tuple[float, int, Place, bool]:
    """The values of a `Pace`: minutes of a training, trials at once, where they run, pruning."""
    return _TRIAL_MINUTES.value, _TRIALS_AT_ONCE.value, engine_flags.place(), _PRUNE.value
