"""Flags that a study and a search share: how long and how many at once trials run."""

from absl import flags

_TRIAL_MINUTES = flags.DEFINE_float(
    "trial_minutes", 0.0, "Minutes that a training may take; 0 is no limit.", 0.0
)
_TRIALS_AT_ONCE = flags.DEFINE_integer(
    "trials_at_once", 1, "Trials side by side on a processor, each on its share of the cores.", 1
)
flags.declare_key_flag("trial_minutes")
flags.declare_key_flag("trials_at_once")


def limits() -> tuple[float, int]:
    """Minutes that a training may take (0 is no limit), and trials at once."""
    return _TRIAL_MINUTES.value, _TRIALS_AT_ONCE.value
