"""Flags that say where blocks of work are computed: on this machine, or on a Ray cluster."""

from absl import flags

from tssr_jax.engine import ENGINES, Place

_ENGINE = flags.DEFINE_enum(
    "engine", "local", ENGINES, "Where it is computed: in this process, or by workers on Ray."
)
_ADDRESS = flags.DEFINE_string(
    "ray_address",
    "",
    'The Ray cluster: "auto" is the one that this machine is part of. By default Ray is started on '
    "this machine, and ended afterwards.",
)
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Workers on Ray; 0 is one for each GPU or TPU, or for each machine without.", 0
)
for _name in ("engine", "ray_address", "workers"):
    flags.declare_key_flag(_name)


def place() -> Place:
    """The place that the flags name."""
    return Place(_ENGINE.value, _ADDRESS.value, _WORKERS.value)
