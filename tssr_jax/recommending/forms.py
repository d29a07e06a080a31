"""How files and DataFrames of histories name things."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import ml_collections


class Form(NamedTuple):
    """How files name things; only files with a row for each item name items, times and events.

    Attributes:
      user: the column of users.
      item: the column of items.
      time: the column of times; a file need not have it.
      time_format: strptime's format of times, "" for seconds or ISO dates.
      event: the column of events; a file need not have it.
      events: that may be there; () reads none.
      fields: of users, that are read where a file has them.
    """

    user: str = "user"
    item: str = "item"
    time: str = "timestamp"
    time_format: str = ""
    event: str = ""
    events: Sequence[str] = ()
    fields: Sequence[str] = ()


def form_of(
    data: ml_collections.ConfigDict, events: Sequence[str] = (), fields: Iterable[str] = ()
) -> Form:
    """The form of a run's own data.

    Args:
      data: section `data` of its configuration.
      events: that its model reads.
      fields: of users, that its model reads.
    """
    names = (data.user_column, data.item_column, data.timestamp_column, data.timestamp_format)
    return Form(*names, data.event_column if events else "", events, tuple(fields))


USUAL = Form()
