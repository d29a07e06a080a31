"""One's own data: a folder with interactions.csv (user,item,timestamp) and items.csv (item,title).

python -m tssr_jax.main --config=configs/csv.py:FOLDER --workdir=runs/mine
"""

import ml_collections

from tssr_jax.config import default
from tssr_jax.config.by_data import fit_to_data


def get_config(folder: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration for the data in `folder`."""
    config = default.get_config()
    config.data.source = "csv"
    config.data.raw_dir = folder
    fit_to_data(config)
    return config
