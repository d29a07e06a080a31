"""Shipped configurations: each changes a few fields of `tssr_jax/config/default.py`."""
