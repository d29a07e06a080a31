"""Yelp's open dataset: yelp_academic_dataset_review.json and _business.json.

    python -m tssr_jax.main --config=configs/yelp.py --workdir=DIR --config.data.raw_dir=FOLDER

Download: https://business.yelp.com/data/resources/open-dataset/
"""

import ml_collections

from tssr_jax.config import default
from tssr_jax.config.by_data import fit_to_data


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration for Yelp."""
    config = default.get_config()
    config.data.source = "yelp"
    config.data.text_fields = ("name", "categories", "city")
    fit_to_data(config)
    return config
