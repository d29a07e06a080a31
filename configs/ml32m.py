"""MovieLens-32M, with GroupLens' files (ratings.csv, movies.csv) in --config.data.raw_dir=FOLDER.

python -m tssr_jax.main --config=configs/ml32m.py --workdir=runs/ml32m
"""

import ml_collections

from tssr_jax.config import load


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration for MovieLens-32M."""
    config = load("ml1m")
    config.data.source = "ml32m"
    return config
