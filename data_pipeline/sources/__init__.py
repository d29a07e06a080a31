"""Raw dump formats, one file each. `SOURCES` maps `config.data.source` to its reader."""

from data_pipeline.sources.base import RawData, RawFiles, Source
from data_pipeline.sources.csv_files import CsvSource
from data_pipeline.sources.movielens import ML_1M, ML_100K

SOURCES: dict[str, Source] = {"ml100k": ML_100K, "ml1m": ML_1M, "csv": CsvSource()}

__all__ = ["SOURCES", "RawData", "RawFiles", "Source"]
