"""The kind of device that a program is compiled for: what is fast on one is slow on another."""

from typing import Any

import jax

# A function that was traced for one platform is traced again for another.
_PLATFORM: Any = jax.make_user_context(default_value=None)


def platform() -> str:
    """The platform of the program that is being traced: "cpu", "gpu" or "tpu".

    JAX's default platform outside of `compiled_for`.
    """
    return _PLATFORM.value or jax.default_backend()


def compiled_for(name: str) -> Any:
    """A context: functions that are traced inside it are for this platform."""
    return _PLATFORM(name)
