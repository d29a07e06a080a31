"""H&M, as Kaggle publishes it: transactions_train.csv, articles.csv, images/.

    python -m tssr_jax.main --config=configs/hm.py --workdir=DIR --config.data.raw_dir=FOLDER

Download: www.kaggle.com/competitions/h-and-m-personalized-fashion-recommendations/data

1.3 million users and up to 105,000 items: some 10,000 steps an epoch. Without an accelerator add
--config.loss.next_item=sampled --config.optimizer.lazy_rows and
--config.train.early_stopping_patience=2. (Measured for the paper's model at length 10 and width 64
on two cores: a step takes 0.3 in place of 2 s.)
"""

import ml_collections

from tssr_jax.config import default
from tssr_jax.config.by_data import fit_to_data


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration for H&M."""
    config = default.get_config()
    config.data.source = "hm"
    config.data.text_fields = (
        "prod_name",
        "product_type_name",
        "colour_group_name",
        "graphical_appearance_name",
        "garment_group_name",
        "detail_desc",
    )
    config.data.text_field_length = 200
    # Several pieces of an article in one basket are several rows.
    config.data.drop_repeats = True
    fit_to_data(config)
    # Customers buy an article again, for example in another size.
    config.evaluate.keep_seen = True
    return config
