"""The default configuration, unchanged; `tssr_jax/config/default.py` lists every field."""

from tssr_jax.config.default import get_config

__all__ = ["get_config"]
