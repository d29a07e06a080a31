"""One's own data: a folder with interactions.csv (user,item,timestamp) and items.csv (item,title).

python -m tssr_jax.main --config=configs/csv.py:FOLDER --workdir=runs/mine
"""

import ml_collections

from tssr_jax.config import default


def get_config(folder: str = "") -> ml_collections.ConfigDict:
    """Returns the configuration for the data in `folder`."""
    config = default.get_config()
    config.data.source = "csv"
    config.data.raw_dir = folder
    config.model.max_length = 20
    # Most data of this kind is sparse and its histories short: what keeps them from being learnt
    # by heart (docs/internals/decisions.md has the numbers).
    config.train.time_noise = (0.0, 7.0, 30.0, 1e6)
    config.optimizer.ema_decay = 0.99
    return config
