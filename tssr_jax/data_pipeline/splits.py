"""Which interactions train, and which are the answers that evaluation asks for.

    leave_one_out   each user's last item is the test answer, the one before it of validation
    global_time     answers are what users took from a date on; training knows nothing later

(arXiv 2507.16289, "Time to Split", compares them.)
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import ml_collections
import numpy as np
import polars as pl

from tssr_jax.data_pipeline.interactions import hash_ids
from tssr_jax.errors import UserError

EvalSplit = Literal["validation", "test"]
MINUTES_PER_DAY = 1440
# A user's predicted interactions of which leave-one-out takes two.
MIN_PREDICTED = 3
# One of so many users is asked by validation where the data has one cut.
_ONE_IN = 10
_EPOCH = datetime.date(1970, 1, 1)


class Targets(NamedTuple):
    """The answers of a split.

    Attributes:
      users: int64 [rows], ascending.
      ends: int64 [rows], at least 1: how many items of the user stand before the answer.
    """

    users: np.ndarray
    ends: np.ndarray


class Splits(NamedTuple):
    """How sequences are used.

    Attributes:
      trained: int64 [num_users], how many items of each user training may read, from the first on.
      until_test: int64 [num_users], how many of each user stand before the test.
      targets: the answers of "validation" and of "test".
      told: a line about it for the log; "" for leave-one-out.
      begins: dates on which validation and the test begin; none for leave-one-out.
      asked_for: minutes from the end of training to the end of validation, or with one cut of the
        test; 0 for leave-one-out.
    """

    trained: np.ndarray
    until_test: np.ndarray
    targets: Mapping[EvalSplit, Targets]
    told: str = ""
    begins: tuple[str, ...] = ()
    asked_for: int = 0


# Yields int64 [users] and the minutes int32 [users, length] of their items, left padded; the number
# of items is known.
Times = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


# Yields int64 [users] and which of their items are predicted, bool [users, length], left padded;
# None where all items are.
Predictions = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]] | None


def leave_one_out(lengths: np.ndarray, predictions: Predictions = None) -> Splits:
    """Two answers of each user: the last two interactions that are predicted.

    Users with fewer than three such interactions have no answer; all they have trains.

    Args:
      lengths: int64 [num_users], at least 3.
      predictions: which interactions can be answers.
    """
    if predictions is not None:
        return _last_two(lengths, predictions)
    users = np.arange(lengths.size)
    targets = {"validation": Targets(users, lengths - 2), "test": Targets(users, lengths - 1)}
    return Splits(lengths - 2, lengths - 1, targets)  # type: ignore[arg-type]


def _last_two(lengths: np.ndarray, predictions: Predictions) -> Splits:
    assert predictions is not None
    parts = []
    for users, there in predictions():
        enough = there.sum(axis=1) >= MIN_PREDICTED
        some, there = users[enough], there[enough]  # noqa: PLW2901
        last = newest(there)
        there[np.arange(some.size), last] = False
        shift = lengths[some] - there.shape[1]  # from columns to places in the sequence
        parts.append((some, newest(there) + shift, last + shift))
    users, before, last = _by_user(parts)
    trained, until_test = lengths.copy(), lengths.copy()
    trained[users], until_test[users] = before, last
    targets = {"validation": Targets(users, before), "test": Targets(users, last)}
    return Splits(trained, until_test, targets)  # type: ignore[arg-type]


def with_more_trained(splits: Splits, lengths: np.ndarray, held_out: Collection[str]) -> Splits:
    """The splits where training also reads what is not held out.

    Args:
      splits: with both answers held out.
      lengths: int64 [num_users], lengths of the sequences.
      held_out: `config.evaluate.held_out`.
    """
    if "validation" in held_out:
        return splits
    told = splits.told and f"{splits.told}; training also reads all that is not held out"
    trained = splits.until_test if "test" in held_out else lengths
    return splits._replace(trained=trained, told=told)


def trained_before(splits: Splits, held_out: Collection[str]) -> str:
    """The date, UTC, from which on training reads nothing; "" if it reads every date.

    Args:
      splits: of the data.
      held_out: `config.evaluate.held_out`.
    """
    if not splits.begins or not held_out:
        return ""
    return splits.begins[0] if "validation" in held_out else splits.begins[-1]


def newest(there: np.ndarray) -> np.ndarray:
    """The last column of each row that is true, int64 [rows]; -1 where none is."""
    last = there.shape[1] - 1 - np.argmax(there[:, ::-1], axis=1)
    return np.where(there.any(axis=1), last, -1)


def asked_users(ids: Sequence[str]) -> np.ndarray:
    """Every tenth user by a hash of the id, bool [num_users]: those of tomorrow's data, too."""
    return hash_ids(pl.Series(ids, dtype=pl.String)) % _ONE_IN == 0


def global_time(
    lengths: np.ndarray,
    times: Times,
    settings: ml_collections.ConfigDict,
    predictions: Predictions = None,
    drawn: np.ndarray | None = None,
) -> Splits:
    """Answers of two periods: validation's, and after it test's, until the end of the data.

    With one cut there is no period for validation: it asks some users for their last items before
    the test, and training reads nothing of them.

    Args:
      lengths: int64 [num_users], lengths of the sequences.
      times: reads the times of all users.
      settings: section `evaluate` of the config.
      predictions: which interactions can be answers.
      drawn: bool [num_users], with one cut the users that validation asks, see `asked_users`.

    Raises:
      UserError: if there is nothing to train on, or no answer.
    """
    days = _days(times, lengths)
    starts = [_start(cut, days) for cut in settings.cuts]
    first, second = starts[0], starts[-1]
    if len(starts) == 2 and not first < second:
        raise UserError(
            f"--config.evaluate.cuts is {tuple(settings.cuts)}, by which validation begins on "
            f"{_date(first)} and the test on {_date(second)}: the first must be earlier."
        )
    before = np.zeros((2, lengths.size), np.int64)
    for users, minutes in times():
        there = np.arange(minutes.shape[1]) >= minutes.shape[1] - lengths[users, None]
        for place, day in enumerate((first, second)):
            before[place, users] = ((minutes < day * MINUTES_PER_DAY) & there).sum(axis=1)
    trained, until_test = before
    asked = trained, until_test, settings.targets
    if len(starts) == 1:
        assert drawn is not None
        asked = np.zeros_like(trained), np.where(drawn, until_test, 0), "last"
        trained = np.where(drawn, 0, trained)
    targets: dict[EvalSplit, Targets] = {
        "validation": _targets(*asked, lengths, predictions),
        "test": _targets(until_test, lengths, settings.targets, lengths, predictions),
    }
    for name, found in targets.items():
        if not found.users.size or not (trained >= 2).any():
            raise UserError(
                f"--config.evaluate.cuts={tuple(settings.cuts)}: training ends before "
                f"{_date(first)}, the test begins on {_date(second)}. Nobody has a target for "
                f"{name} with an item before it, or two items to train on. Name other dates"
                f"{'; with few users, two of them' if len(starts) == 1 else ''}."
            )
    told = (
        f"training ends before {_date(first)} ({trained.sum():,} interactions), validation before "
        f"{_date(second)} ({targets['validation'].users.size:,} targets"
        f"{' of users that training leaves out' if len(starts) == 1 else ''}); the test has "
        f"{targets['test'].users.size:,} targets"
    )
    end = second if second > first else days[0] + days[1].size
    begins, asked_for = (_date(first), _date(second)), (end - first) * MINUTES_PER_DAY
    return Splits(trained, until_test, targets, told, begins, asked_for)


def _targets(
    starts: np.ndarray,
    ends: np.ndarray,
    which: str,
    lengths: np.ndarray,
    predictions: Predictions,
) -> Targets:
    """The answers among each user's items from `starts` to `ends`, of which one stands before."""
    firsts = np.maximum(starts, 1)
    if predictions is not None:
        return _predicted_targets(firsts, ends, which, lengths, predictions)
    users = np.flatnonzero(firsts < ends)
    if which == "first":
        return Targets(users, firsts[users])
    if which == "last":
        return Targets(users, ends[users] - 1)
    numbers = (ends - firsts)[users]
    steps = np.arange(numbers.sum()) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    return Targets(np.repeat(users, numbers), np.repeat(firsts[users], numbers) + steps)


def _predicted_targets(
    firsts: np.ndarray, ends: np.ndarray, which: str, lengths: np.ndarray, predictions: Any
) -> Targets:
    found = []
    for users, there in predictions():
        places = np.arange(there.shape[1]) - (there.shape[1] - lengths[users, None])
        asked = there & (places >= firsts[users, None]) & (places < ends[users, None])
        rows, columns = np.nonzero(asked)
        if which != "all":
            rows = np.flatnonzero(asked.any(axis=1))
            columns = (asked.argmax(axis=1) if which == "first" else newest(asked))[rows]
        found.append((users[rows], places[rows, columns]))
    return Targets(*_by_user(found))


def _by_user(parts: Sequence[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """Columns of which the first has users, together and in the order of the users."""
    columns = [np.concatenate(values) for values in zip(*parts, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return [values[order] for values in columns]


def _days(times: Times, lengths: np.ndarray) -> tuple[int, np.ndarray]:
    """The first day (since 1970, UTC) with an interaction, and how many each day has from it on."""
    first, counts = 0, np.zeros(0, np.int64)
    for users, minutes in times():
        there = np.arange(minutes.shape[1]) >= minutes.shape[1] - lengths[users, None]
        own = minutes[there] // MINUTES_PER_DAY
        low, high = int(own.min()), int(own.max())
        if not counts.size:
            first, counts = low, np.zeros(high - low + 1, np.int64)
        before, after = max(0, first - low), max(0, high + 1 - first - counts.size)
        counts = np.pad(counts, (before, after))
        first -= before
        counts += np.bincount(own - first, minlength=counts.size)
    return first, counts


def _start(cut: float | str, days: tuple[int, np.ndarray]) -> int:
    """The day that a period begins on: a date, or the first by which a share has passed."""
    if isinstance(cut, str):
        return (datetime.date.fromisoformat(cut) - _EPOCH).days
    first, counts = days
    return first + int(np.searchsorted(np.cumsum(counts), cut * counts.sum())) + 1


def _date(day: int) -> str:
    try:
        return (_EPOCH + datetime.timedelta(days=day)).isoformat()
    except OverflowError:
        return f"day {day:,} since 1970"
