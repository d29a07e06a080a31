"""MovieLens-10M, with GroupLens' files (ratings.dat, movies.dat) in --config.data.raw_dir=FOLDER.

python -m tssr_jax.main --config=configs/ml10m.py --workdir=runs/ml10m
"""

import ml_collections

from tssr_jax.config import load


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration for MovieLens-10M."""
    config = load("ml1m")
    config.data.source = "ml10m"
    return config
