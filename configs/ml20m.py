"""MovieLens-20M, downloaded from GroupLens, or read from --config.data.raw_dir=FOLDER.

python -m tssr_jax.main --config=configs/ml20m.py --workdir=runs/ml20m
"""

import ml_collections

from tssr_jax.config import load


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration for MovieLens-20M."""
    config = load("ml1m")
    config.data.source = "ml20m"
    return config
