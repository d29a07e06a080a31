"""Checkpoints by Orbax, checked when they are read."""
