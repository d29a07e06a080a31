"""H&M, as Kaggle publishes it: transactions_train.csv, articles.csv, images/.

    python -m tssr_jax.main --config=configs/hm.py --workdir=DIR --config.data.raw_dir=FOLDER

Download: www.kaggle.com/competitions/h-and-m-personalized-fashion-recommendations/data
"""

import ml_collections

from configs import default


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
    config.model.max_length = 20
    config.train.packing = True
    return config
