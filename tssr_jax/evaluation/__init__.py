"""Ranks and lists over the whole catalogue, their metrics, and baselines."""
