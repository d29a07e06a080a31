"""Tables of users: one row for each, with what is known of them."""

from collections.abc import Sequence

import polars as pl

from tssr_jax.data_pipeline.sources import tables, values
from tssr_jax.data_pipeline.sources.base import Dump
from tssr_jax.data_pipeline.sources.delimited import Format
from tssr_jax.errors import UserError, shown


def read_users(dump: Dump, key: str, form: Format = tables.COMMAS, hint: str = "") -> pl.DataFrame:
    """Reads the fields `data.user_fields` of the users' file.

    Args:
      dump: its files and settings.
      key: the column of users' ids; if it has a type ("user_id:token"), those of the other columns
        are left out of their names.
      form: how the file is written.
      hint: what to do if that column is missing.

    Returns:
      Columns `user` (unique) and the fields, strings, null where empty.

    Raises:
      UserError: if a column is missing, an id is, or two rows tell different things of one user.
    """
    path, fields = dump.files.users, tuple(dump.data.user_fields)
    assert path is not None
    rows = tables.read_table(path, form, needed=(key,), hint=hint)
    ids = values.parse_ids(rows, key, path)
    others = [name for name in rows.table.columns if name != key]
    names = {name.partition(":")[0] if ":" in key else name: name for name in others}
    missing = [name for name in fields if name not in names]
    if missing:
        raise UserError(
            f"--config.data.user_fields names {shown(missing[0])!r}; {path} has the fields "
            f"{shown(', '.join(names), 300)}."
        )
    own = [pl.col(names[name]).alias(f"\0{i}") for i, name in enumerate(fields)]
    table = rows.table.select(ids.alias("user"), *own)
    table = table.rename({f"\0{i}": name for i, name in enumerate(fields)})
    return _unique(table, dump, rows.lines.tolist())


def _unique(table: pl.DataFrame, dump: Dump, lines: Sequence[int]) -> pl.DataFrame:
    numbered = table.with_columns(pl.Series("\0line", lines))
    distinct = numbered.unique(table.columns, keep="first", maintain_order=True)
    clash = distinct.filter(pl.col("user").is_duplicated())
    if clash.height and dump.data.repeated_items == "error":
        own = clash.filter(pl.col("user") == clash["user"][0])["\0line"]
        raise UserError(
            f"{dump.files.users}: user {shown(clash['user'][0], 60)!r} is described differently in "
            f"lines {own[0]} and {own[1]}. Keep one row for each user, or set "
            "--config.data.repeated_items=first."
        )
    return distinct.unique("user", keep="first", maintain_order=True).drop("\0line")
