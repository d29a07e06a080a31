"""What is known of users beside their histories, such as gender and age group.

The columns `data.user_fields` of the users' file have one value for each user. A value that fewer
than `LEAST` users have, or that is not among the `MOST` most frequent of its field, counts as
missing; so does one that only new users have. A user's values together are one number, the code:

    code = n_1 + size_1 * (n_2 + size_2 * (n_3 + ...))

n_f is the number of the value in field f, from 1, and 0 if it is missing; size_f is one more than
the number of values.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from tssr_jax.data_pipeline import records
from tssr_jax.data_pipeline.sources import SOURCES, Dump
from tssr_jax.data_pipeline.sources.base import SourceWithUsers
from tssr_jax.data_pipeline.sources.values import spelled
from tssr_jax.errors import UserError, shown

LEAST, MOST = 5, 1_000
# Beside the files of users: int32 [num_users], their codes; and the values of their fields.
FILE, VALUES_FILE = "profiles.npy", "profiles.json"
# Columns of histories, which can't be fields of users as well.
TAKEN = ("user", "item", "timestamp", "items", "times", "events", "profile")
_THERE, _NUMBER = "\0there", "\0number"  # no column of a file is called that
# Values of each field, the one of number i at index i - 1.
Fields = Mapping[str, Sequence[str]]


def sizes(fields: Fields) -> tuple[int, ...]:
    """For each field one more than the number of its values."""
    return tuple(1 + len(values) for values in fields.values())


def code_of(profile: Mapping[str, Any], fields: Fields) -> int:
    """The code of one user.

    Args:
      profile: values by fields; a field may be left out, None or "".
      fields: that the model reads.

    Raises:
      UserError: for a field that the model does not read, or a value of another type.
    """
    unknown = next((name for name in profile if name not in fields), None)
    if unknown is not None:
        there = f"those of the run are {shown(', '.join(fields), 300)}" if fields else "it has none"
        raise UserError(
            f"{shown(repr(unknown))} is no field of users that this run reads; {there} "
            "(data.user_fields)."
        )
    code = 0
    for name, values in reversed(list(fields.items())):
        told = spelled(profile.get(name))
        code = code * (1 + len(values)) + (1 + values.index(told) if told in values else 0)
    return code


def values_of(code: int, fields: Fields) -> dict[str, str]:
    """The values of a code, by fields, without missing ones."""
    found = {}
    for name, values in fields.items():
        code, number = divmod(code, 1 + len(values))
        if number:
            found[name] = values[number - 1]
    return found


def write_profiles(folder: Path, dump: Dump) -> dict[str, list[str]]:
    """Writes the users' codes beside their sequences; returns the values of the fields.

    Args:
      folder: the prepared data set of users.
      dump: its files; gets the count "users_without_a_row_in_the_users_file".

    Raises:
      UserError: if there is no such column, nobody has a row, or no value is frequent enough.
    """
    path, names = dump.files.users, tuple(dump.data.user_fields)
    assert path is not None
    source = cast(SourceWithUsers, SOURCES[dump.data.source])
    table = source.users(dump)
    ids = pl.DataFrame({"user": records.texts(folder, "user_id")}, schema={"user": pl.String})
    there = pl.lit(True).alias(_THERE)
    rows = ids.join(table.with_columns(there), on="user", how="left", maintain_order="left")
    without = int(rows[_THERE].is_null().sum())
    if without == rows.height:
        raise UserError(
            f"{path} has no row for any of the {rows.height:,} users: {shown(ids['user'][0], 50)!r}"
            f" is one of the interactions', {shown(table['user'][0], 50)!r} one of this file."
        )
    dump.counts["users_without_a_row_in_the_users_file"] += without
    told = pl.DataFrame([_spelled(rows[name]) for name in names])
    fields = {name: _frequent(told[name]) for name in names}
    for name, values in fields.items():
        if not values:
            raise UserError(
                f"{path}: no value of {shown(name)!r} occurs in at least {LEAST} users "
                "(--config.data.user_fields). Group such values, e.g. years to decades."
            )
    if math.prod(sizes(fields)) >= 2**31:
        raise UserError(
            f"{path}: {', '.join(names)} have {', '.join(map(str, map(len, fields.values())))} "
            "values, too many combinations for 31 bits. Leave out a field of "
            "--config.data.user_fields."
        )
    np.save(folder / FILE, _codes(told, fields))
    (folder / VALUES_FILE).write_text(json.dumps(fields) + "\n")
    return fields


def _spelled(values: pl.Series) -> pl.Series:
    ways = {value: spelled(value) for value in values.unique().drop_nulls()}
    return values.replace_strict(ways, default=None, return_dtype=pl.String)


def _frequent(values: pl.Series) -> list[str]:
    counts = values.drop_nulls().value_counts(sort=False, name=_NUMBER)
    frequent = counts.filter(pl.col(_NUMBER) >= LEAST)
    frequent = frequent.sort(_NUMBER, values.name, descending=[True, False])
    return frequent[values.name].head(MOST).to_list()


def _codes(told: pl.DataFrame, fields: Fields) -> np.ndarray:
    codes = np.zeros(told.height, np.int64)
    for name, values in reversed(list(fields.items())):
        number = dict(zip(values, range(1, 1 + len(values)), strict=True))
        own = told[name].replace_strict(number, default=0, return_dtype=pl.Int64).fill_null(0)
        codes = codes * (1 + len(values)) + own.to_numpy()
    return codes.astype(np.int32)
