"""MovieLens-1M with the real titles and genres.

python -m tssr_jax.main --config=configs/ml1m.py --workdir=runs/ml1m
"""

import ml_collections

from tssr_jax.config import default
from tssr_jax.config.by_data import fit_to_data


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration for MovieLens-1M."""
    config = default.get_config()
    config.data.source = "ml1m"
    config.data.text_fields = ("title", "genres")
    fit_to_data(config)
    return config
