"""The items that can be recommended: the owner's ids and titles, and their classes."""

import dataclasses
import functools
import itertools
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tssr_jax.data_pipeline.profiles import Fields, code_of
from tssr_jax.data_pipeline.sources.ids import as_number
from tssr_jax.errors import UserError, shown
from tssr_jax.memory.scores import NOW
from tssr_jax.run import Run

# What names an item: an id of the data, or the whole number that it is.
ItemId = str | int
# Values of the fields of a user.
Profile = Mapping[str, str | float | None]
# Minutes of later times do not fit into an int32.
MOST_SECONDS = 60.0 * 2**31


class KnownHistory(NamedTuple):
    """What the catalogue has of a history, oldest first.

    Attributes:
      classes: of the items that it has.
      minutes: when they were taken, since 1970.
      unknown: the other ids.
      events: numbers of their events; [] for a model that reads none.
      profile: the code of the user; 0 if nothing is told.
    """

    classes: list[int]
    minutes: list[int]
    unknown: list[str]
    events: list[int]
    profile: int = 0

    def side(self, length: int) -> dict[str, list[int]]:
        """What is known beside the newest `length` items, see `models.side`."""
        number = min(length, len(self.classes))
        return {"events": self.events[-length:], "profiles": [self.profile] * number}


@dataclasses.dataclass(frozen=True)
class Items:
    """A catalogue with its owner's ids and titles; class i is at index i - 1.

    Attributes:
      ids: the owner's.
      titles: "" without one.
      counts: how often training has seen each class, int64 [num_items + 1].
      events: names of the events that the model reads, the one of number i at index i - 1; () if it
        reads none.
      usual_event: the event assumed where none is given, the first that is predicted.
      profile_fields: values of the fields of users that the model reads; {} if it reads none.
    """

    ids: Sequence[str]
    titles: Sequence[str]
    counts: np.ndarray
    events: Sequence[str] = ()
    usual_event: str = ""
    profile_fields: Fields = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, run: Run) -> "Items":
        """The items of a run."""
        data, usual = run.data, next(iter(run.config.data.target_events), "")
        fields = data.profile_fields
        return cls(data.item_ids, data.titles, run.counts, data.events, usual, fields)

    @property
    def usual_number(self) -> int:
        """Number of the usual event; 0 without events."""
        return 1 + self.events.index(self.usual_event) if self.events else 0

    @functools.cached_property
    def _class_of(self) -> dict[str, int]:
        return {item: i for i, item in enumerate(self.ids, 1)}

    def known(self, ids: Iterable[ItemId]) -> tuple[list[int], list[str]]:
        """The classes of those ids that exist, in their order, and the ids that don't."""
        classes, unknown = [], []
        for item in require_list(ids):
            found = self.find(item)
            if found is None:
                unknown.append(str(item))
            else:
                classes.append(found)
        return classes, unknown

    def read(
        self,
        history: Sequence[ItemId],
        seconds: Sequence[float] | None = None,
        events: Sequence[str] | None = None,
        profile: Profile | None = None,
    ) -> KnownHistory:
        """What the catalogue has of a history.

        Args:
          history: ids, oldest first.
          seconds: their times since 1970, ascending; None gives each item a minute of its own, up
            to now.
          events: of the items, known ones; None is the usual one.
          profile: of the user; None tells nothing.

        Raises:
          UserError: if the profile has a field that the model does not read.
        """
        history = require_list(history)
        places = [self.find(item) for item in history]
        there = [i for i, place in enumerate(places) if place is not None]
        unknown = [str(item) for item, place in zip(history, places, strict=True) if place is None]
        if seconds is None:
            minutes = list(range(NOW - len(there) + 1, NOW + 1))
        else:
            minutes = [int(seconds[i] // 60) for i in there]
        numbers = []
        if self.events:
            names = [self.usual_event] * len(history) if events is None else events
            numbers = [1 + self.events.index(names[i]) for i in there]
        code = code_of(profile or {}, self.profile_fields)
        return KnownHistory([places[i] or 0 for i in there], minutes, unknown, numbers, code)

    def require_events(
        self, histories: Sequence[Sequence[ItemId]], events: Sequence[Sequence[str] | None]
    ) -> None:
        """Raises UserError if events don't fit to histories, or the model knows no such."""
        if len(events) != len(histories):
            raise UserError(f"There are {len(histories)} histories, but events of {len(events)}.")
        for history, own in zip(histories, events, strict=True):
            if own is None:
                continue
            if not self.events:
                raise UserError("This model reads no events (data.target_events): leave them out.")
            if isinstance(own, str) or len(own) != len(history):
                raise UserError(
                    f"A history of {len(history)} items has the events {shown(repr(own))}: it "
                    "needs one for each."
                )
            unknown = next((name for name in own if name not in self.events), None)
            if unknown is not None:
                raise UserError(
                    f"There is no event {shown(repr(unknown))}; those of the run's data are "
                    f"{shown(', '.join(self.events), 300)}."
                )

    def checked(
        self,
        histories: Sequence[Sequence[ItemId]],
        times: Sequence[Sequence[float] | None] | None,
        events: Sequence[Sequence[str] | None] | None = None,
        profiles: Sequence[Profile | None] | None = None,
    ) -> tuple[Sequence[Any], ...]:
        """The arguments of `read` for each of some histories; for what they are see there.

        Raises:
          UserError: if one of them is malformed, or fits neither its history nor the model.
        """
        if isinstance(histories, str) or not isinstance(histories, Iterable):
            kind = shown(type(histories).__name__)
            raise UserError(f"Histories are of type {kind}; give lists of ids, or a DataFrame.")
        read = [require_list(history) for history in histories]
        nothing: list[None] = [None] * len(read)
        times = nothing if times is None else times
        events = nothing if events is None else events
        profiles = nothing if profiles is None else profiles
        require_times(read, times)
        self.require_events(read, events)
        if len(profiles) != len(read):
            raise UserError(f"There are {len(read)} histories, but profiles of {len(profiles)}.")
        for profile in profiles:
            if profile is not None and not isinstance(profile, Mapping):
                raise UserError(
                    f"{shown(repr(profile))} is no profile: it must be values by fields, such as "
                    '{"gender": "F"}.'
                )
            code_of(profile or {}, self.profile_fields)
        return read, times, events, profiles

    def find(self, item: ItemId) -> int | None:
        """The class of one id; None if there is none. See `as_id`."""
        return self._class_of.get(as_id(item))

    def class_of(self, item: ItemId) -> int:
        """The class of one id; raises UserError if there is none."""
        found = self.find(item)
        if found is None:
            raise UserError(
                f"Item {shown(item)!r} is not in the catalogue of {len(self.ids):,} items."
            )
        return found

    def mask(self, ids: Iterable[ItemId], name: str) -> np.ndarray:
        """Which classes are among these ids, bool [num_items + 1].

        Raises:
          UserError: if none of them exists.
        """
        classes, unknown = self.known(ids)
        if not classes:
            raise UserError(
                f"{name} names no item of the catalogue; its ids are {_some(unknown)}, those of "
                f"the catalogue {_some(self.ids)}."
            )
        mask = np.zeros(len(self.ids) + 1, bool)
        mask[classes] = True
        return mask

    def with_more(self, ids: Sequence[str], titles: Sequence[str]) -> "Items":
        """The catalogue plus further items, which training has not seen.

        Raises:
          UserError: if an id, or the number that it is ("3" and "3.0"), is there already.
        """
        numbers = {as_number(item) for item in self.ids} - {None}
        there = sorted(
            item for item in set(ids) if item in self._class_of or as_number(item) in numbers
        )
        if there:
            raise UserError(
                f"{len(there):,} of the {len(ids):,} new items are in the catalogue already: "
                f"{_some(there)}. Leave them out."
            )
        counts = np.concatenate([self.counts, np.zeros(len(ids), self.counts.dtype)])
        more = [*self.ids, *ids], [*self.titles, *titles]
        return dataclasses.replace(self, ids=more[0], titles=more[1], counts=counts)


def as_id(value: Any) -> str:
    """An id as the data has it: a string without white space around it; whole numbers count, too.

    Raises:
      UserError: if it is something else.
    """
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{shown(repr(value))} is no id of an item: ids are strings or whole numbers.")


def require_list(ids: Iterable[ItemId]) -> list[ItemId]:
    """The ids; raises UserError for a single string, which would be read as ids of one letter."""
    if isinstance(ids, str | bytes):
        raise UserError(
            f"{shown(repr(ids))} is one id where a list of ids belongs: put it into []."
        )
    if not isinstance(ids, Iterable):
        raise UserError(f"{shown(repr(ids))} is no list of ids.")
    return list(ids)


def require_number(top_k: Any) -> int:
    """A length of lists; raises UserError if it is no whole number from 1 on."""
    whole = isinstance(top_k, numbers.Integral) and not isinstance(top_k, bool)
    if not whole or top_k < 1:
        raise UserError(f"top_k is {shown(repr(top_k))}; it must be a whole number, at least 1.")
    return int(top_k)


def require_times(
    histories: Sequence[Sequence[ItemId]], times: Sequence[Sequence[float] | None]
) -> None:
    """Raises UserError if times don't fit to histories, or are not ascending."""
    if len(times) != len(histories):
        raise UserError(f"There are {len(histories)} histories, but times of {len(times)}.")
    for history, own in zip(histories, times, strict=True):
        if own is None:
            continue
        require_seconds(own)
        if len(own) != len(history):
            raise UserError(
                f"A history of {len(history)} items has {len(own)} times: it needs one for each."
            )
        if any(first > second for first, second in itertools.pairwise(own)):
            raise UserError(f"Times of a history are not ascending: {_some(own)}.")


def require_seconds(times: Sequence[float]) -> None:
    """Raises UserError unless times are seconds since 1970."""
    if isinstance(times, str | bytes) or not isinstance(times, Iterable):
        raise UserError(f"Times of a history are {shown(repr(times))}, no list of seconds.")
    for at in times:
        if not isinstance(at, numbers.Real) or not abs(at) < MOST_SECONDS:
            raise UserError(
                f"Times of a history are not seconds since 1970: {shown(repr(at))}. (Milliseconds?)"
            )


def _some(ids: Sequence[Any]) -> str:
    """The first few, for a message."""
    some = [shown(repr(one), 40) for one in ids[:3]]
    return ", ".join([*some, *(["..."] if len(ids) > 3 else [])]) or "none"
