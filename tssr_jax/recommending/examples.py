"""Real histories to look at: what a user took, and what they took next."""

from typing import NamedTuple

from tssr_jax.data_pipeline.profiles import values_of
from tssr_jax.data_pipeline.store import EVENT, ITEMS, MINUTES, PROFILE
from tssr_jax.run import Run


class Example(NamedTuple):
    """An answer of the test split, and the history before it.

    Attributes:
      number: of the answer, from 0; equal numbers give equal examples.
      items: ids of the history's newest items, oldest first.
      times: of these items, seconds since 1970, as exact as minutes.
      events: of these items; () if the data is read without.
      profile: what is known of the user, by fields.
      answer: the id of what the user took next; the model was not trained on it.
    """

    number: int
    items: tuple[str, ...]
    times: tuple[int, ...]
    events: tuple[str, ...]
    profile: dict[str, str]
    answer: str


def example(run: Run, number: int, length: int) -> Example:
    """An answer of the test split.

    Args:
      run: its users are at hand (`Run.has_users`).
      number: any number from 0; after the last answer comes the first one.
      length: most items of the history.
    """
    store, ids = run.sequences, run.data.item_ids
    number %= store.splits.targets["test"].users.size
    columns = store.answer("test", number, length)
    items = tuple(ids[place - 1] for place in columns[ITEMS].tolist())
    times = tuple(60 * own for own in columns[MINUTES].tolist())
    events: tuple[str, ...] = ()
    if store.has_events:
        events = tuple(run.data.events[own - 1] for own in columns[EVENT].tolist())
    profile = {}
    if PROFILE in columns:
        profile = values_of(int(columns[PROFILE][0]), run.data.profile_fields)
    return Example(number, items[:-1], times[:-1], events[:-1], profile, items[-1])
