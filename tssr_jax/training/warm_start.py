"""Goes on with the parameters of a run on earlier data.

Items keep what was learnt of them: their rows are found by the owner's ids. A new item begins with
the mean of the items whose content is most like its own. Items that are gone are left out; users
have no parameters. Categories, events and values of users' fields are found by their names: a new
category begins as the other values of its field, a new event as the mean of all, and so does a new
value of a field.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from tssr_jax.errors import UserError
from tssr_jax.models.content import DistinctFeatures
from tssr_jax.parallel import processes, sharding
from tssr_jax.run import Run

# A new item begins with the mean of as many others.
_NEAREST = 10
# With more known items, as many of the most frequent ones are compared.
_MOST_COMPARED = 100_000
_ITEMS_AT_A_TIME = 1_024


def carried_params(run: Run, other: Run, others: Any) -> Any:
    """Another run's parameters for the catalogue of this run, on its devices.

    Args:
      run: the run that begins.
      other: the run that it goes on from, with an equal model.
      others: its parameters.

    Raises:
      UserError: if no item of it is in this run's catalogue.
    """
    class_of = {item: place for place, item in enumerate(other.data.item_ids, 1)}
    places = np.array([0, *(class_of.get(item, -1) for item in run.data.item_ids)])
    known, new = np.flatnonzero(places > 0), np.flatnonzero(places < 0)
    if not known.size:
        raise UserError(
            f"This run shares none of the {other.data.num_items:,} items of the run in "
            "--config.train.warm_start. Use --config.train.init_from to start from a run on other "
            "data."
        )
    told = (
        f"{known.size:,} items keep their vectors, {new.size:,} new items start from similar "
        f"items, {other.data.num_items - known.size:,} items were removed."
    )
    if processes.is_first():
        print(told, flush=True)
    like = _like(run, known, new)

    def rows(path: Any, x: Any) -> np.ndarray:
        whole = x if isinstance(x, np.ndarray) else processes.to_host(x)
        dimension = sharding.class_dimension(sharding.path_names(path))
        if dimension is None:
            return whole
        table = np.moveaxis(whole, dimension, 0)
        carried = table[np.maximum(places, 0)]
        for start in range(0, new.size, _ITEMS_AT_A_TIME):
            some = slice(start, start + _ITEMS_AT_A_TIME)
            carried[new[some]] = carried[like[some]].mean(axis=1)
        return np.moveaxis(carried, 0, dimension)

    params = jax.tree_util.tree_map_with_path(rows, others)
    padded = sharding.pad_classes(params, run.model.classes)
    return run.devices.place(padded, run.params_layout)


def found_by_name(run: Run, other: Run, others: Any, field: str) -> Any:
    """Another run's parameters with the rows of this run's events, categories and profiles.

    Args:
      run: the run that begins.
      other: the run that it goes on from, with an equal model.
      others: its parameters.
      field: names that run, for the error.

    Raises:
      UserError: if one of the two reads events or fields of users, and the other does not.
    """
    if bool(run.data.events) != bool(other.data.events):
        one, two = ("reads" if own.data.events else "reads no" for own in (other, run))
        raise UserError(
            f"{field}: that run {one} events (data.target_events), this one {two} events. Train "
            "both alike."
        )
    new_fields, old_fields = run.data.profile_fields, other.data.profile_fields
    if tuple(new_fields) != tuple(old_fields):
        raise UserError(
            f"{field}: --config.data.user_fields is {tuple(old_fields)} there, and "
            f"{tuple(new_fields)} here. Train both alike."
        )

    def rows(path: Any, x: Any) -> Any:
        names = sharding.path_names(path)
        if names[0] == "event_embedding":
            return _rows_by_name(processes.to_host(x), run.data.events, other.data.events)
        if names[0] == "profile_embedding":
            table, parts, start = processes.to_host(x), [], 0
            for name, old in old_fields.items():
                end = start + 1 + len(old)
                parts.append(_rows_by_name(table[start:end], new_fields[name], old))
                start = end
            return np.concatenate(parts)
        if _reads_categories(names, run.model.modalities):
            return _rows_of_categories(processes.to_host(x), run.categories, other.categories)
        return x

    return jax.tree_util.tree_map_with_path(rows, others)


def _reads_categories(names: Sequence[str], modalities: Sequence[str]) -> bool:
    """Whether a parameter has a row for each category."""
    projection = names[0] in {"content_projection", "output_content"}
    own = "categories" in names or tuple(modalities) == ("categories",)
    return projection and own and names[-1] in {"kernel", "hidden_kernel"}


def _rows_of_categories(table: np.ndarray, new: Sequence[str], old: Sequence[str]) -> np.ndarray:
    place = {name: i for i, name in enumerate(old)}
    others = [name[: name.index("=") + 1] for name in new]
    return table[[place.get(name, place[f]) for name, f in zip(new, others, strict=True)]]


def _rows_by_name(table: np.ndarray, new: Sequence[str], old: Sequence[str]) -> np.ndarray:
    place = {name: i for i, name in enumerate(old, 1)}
    mean = table[1:].mean(axis=0) if old else table[0]
    rows = [table[place[name]] if name in place else mean for name in new]
    return np.stack([table[0], *rows])


def _like(run: Run, known: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The known classes whose content is most like that of each new class, int [new, number]."""
    frequent = known[np.argsort(-run.counts[known], kind="stable")[:_MOST_COMPARED]]
    number = min(_NEAREST, frequent.size)
    tables = [
        processes.to_host(table)[: run.data.num_items + 1]
        for table in run.content.features.values()
        if not isinstance(table, DistinctFeatures)
    ]
    if not tables:  # ids alone, or an encoder that is trained
        return np.tile(frequent[:number], (new.size, 1))
    vectors = np.concatenate(tables, axis=1)
    found = [np.empty((0, number), np.int64)]
    for start in range(0, new.size, _ITEMS_AT_A_TIME):
        likeness = vectors[new[start : start + _ITEMS_AT_A_TIME]] @ vectors[frequent].T
        nearest = np.argpartition(-likeness, number - 1, axis=1)[:, :number]
        found.append(frequent[nearest])
    return np.concatenate(found)
