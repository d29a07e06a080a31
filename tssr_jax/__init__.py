"""TSSR: sequential recommendation from item ids and item content, in JAX (arXiv 2403.07623)."""

__version__ = "0.1.0"
