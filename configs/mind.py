"""MIND, Microsoft's news data: behaviors.tsv and news.tsv.

    python -m tssr_jax.main --config=configs/mind.py --workdir=DIR --config.data.raw_dir=FOLDER

Download: https://msnews.github.io/
"""

import ml_collections

from tssr_jax.config import default
from tssr_jax.config.by_data import fit_to_data


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration for MIND."""
    config = default.get_config()
    config.data.source = "mind"
    config.data.text_fields = ("title", "category", "subcategory", "abstract")
    config.data.text_field_length = 200
    fit_to_data(config)
    return config
