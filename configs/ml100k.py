"""MovieLens-100K with the real titles and genres.

python -m tssr_jax.main --config=configs/ml100k.py --workdir=runs/ml100k_default
"""

import ml_collections

from tssr_jax.config import default
from tssr_jax.config.by_data import fit_to_data


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration for MovieLens-100K."""
    config = default.get_config()
    config.data.source = "ml100k"
    config.data.text_fields = ("title", "genres")
    fit_to_data(config)
    return config
