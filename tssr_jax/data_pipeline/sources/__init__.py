"""Raw dump formats, one file each. `SOURCES` maps `config.data.source` to its reader."""

from tssr_jax.data_pipeline.sources.amazon import Amazon
from tssr_jax.data_pipeline.sources.base import Dump, RawFiles, Source
from tssr_jax.data_pipeline.sources.hm import Hm
from tssr_jax.data_pipeline.sources.mind import Mind
from tssr_jax.data_pipeline.sources.movielens import MOVIELENS
from tssr_jax.data_pipeline.sources.own_files import OwnFiles
from tssr_jax.data_pipeline.sources.yelp import Yelp

SOURCES: dict[str, Source] = {
    **MOVIELENS,
    "csv": OwnFiles(),
    "hm": Hm(),
    "yelp": Yelp(),
    "amazon": Amazon(),
    "mind": Mind(),
}

__all__ = ["SOURCES", "Dump", "RawFiles", "Source"]
