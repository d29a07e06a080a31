r"""Amazon reviews of one category and year.

    python -m tssr_jax.main --config=configs/amazon.py:toys-2014 --workdir=DIR \
        --config.data.raw_dir=FOLDER

The argument is a short name below, or a category as its files spell it ("Toys_and_Games-2014").
tssr_jax/data_pipeline/sources/amazon.py says where the files of 2014, 2018 and 2023 are.
"""

import ml_collections

from tssr_jax.config import load

_SHORT = {
    "beauty": "Beauty",
    "books": "Books",
    "cds": "CDs_and_Vinyl",
    "clothing": "Clothing_Shoes_and_Jewelry",
    "electronics": "Electronics",
    "games": "Video_Games",
    "home": "Home_and_Kitchen",
    "instruments": "Musical_Instruments",
    "movies": "Movies_and_TV",
    "office": "Office_Products",
    "sports": "Sports_and_Outdoors",
    "tools": "Tools_and_Home_Improvement",
    "toys": "Toys_and_Games",
}
# Categories that another year spells otherwise.
_RENAMED = {("Beauty", "2018"): "All_Beauty", ("Beauty", "2023"): "All_Beauty"}


def get_config(edition: str = "toys-2014") -> ml_collections.ConfigDict:
    """Returns the configuration for CATEGORY-YEAR."""
    config = load("csv")
    name, _, year = edition.rpartition("-")
    category = _SHORT.get(name, name)
    config.data.source = "amazon"
    config.data.edition = f"{_RENAMED.get((category, year), category)}-{year}"
    config.data.text_fields = ("title", "brand", "categories", "description")
    config.data.text_field_length = 200
    config.data.repeated_items = "first"
    return config
