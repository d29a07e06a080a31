"""An index of items' vectors: lists without scoring all items, nearly exact (faiss, HNSW).

A score is the product of a history's state with an item's vector, plus the item's bias. The index
holds vectors with their biases as a last number, and is asked with states with a last 1. (Scores of
models with memories are no such products.)
"""

import hashlib
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tssr_jax.data_pipeline.store import EVENT, PROFILE
from tssr_jax.errors import UserError, shown
from tssr_jax.models.apply import newest
from tssr_jax.models.content import Content
from tssr_jax.models.tssr import TSSR
from tssr_jax.parallel.devices import exactly
from tssr_jax.recommending.items import KnownHistory
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.recommending.step import Choice, Found, Stream, power, request_batch, side_names

FILE, ABOUT = "index.faiss", "index.json"
# HNSW: links of an item (M), candidates when inserting (efConstruction) and searching (efSearch).
_LINKS, _INSERTING, _SEARCHING = 32, 100, 256
# Histories that recall is measured by, and lengths of lists.
_MEASURED, LENGTHS = 500, (10, 100)


def build(vectors: np.ndarray) -> Any:
    """The index of vectors float32 [items, width]; item i has the number i."""
    faiss = _faiss()
    index = faiss.IndexHNSWFlat(vectors.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _INSERTING
    index.add(np.ascontiguousarray(vectors, np.float32))
    return index


def search(index: Any, states: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and numbers of the best items, best first, [rows, number]; -1 where none was found."""
    looked_at = max(_SEARCHING, 2 * number)
    settings = _faiss().SearchParametersHNSW(efSearch=looked_at)
    scores, numbers = index.search(with_one(states), number, params=settings)
    return scores, numbers


def with_one(states: np.ndarray) -> np.ndarray:
    """States float32 [rows, width], by which the index is asked."""
    return np.pad(states.astype(np.float32), ((0, 0), (0, 1)), constant_values=1.0)


def indexed_vectors(choice: Choice, number: int) -> np.ndarray:
    """Vectors of items 1..number with their biases, float32 [items, width + 1]."""
    kernel, bias = (np.asarray(values, np.float32) for values in choice.weights)
    return np.concatenate([kernel.T, bias[:, None]], axis=1)[1 : number + 1]


def write_index(folder: Path, recommender: Recommender) -> dict[str, float]:
    """Writes the index of a model into a folder; returns its recall against exact lists, by length.

    Raises:
      UserError: if the model has memories, or faiss is not there.
    """
    require_products(recommender)
    vectors = indexed_vectors(recommender.tables[2], len(recommender.items.ids))
    index = build(vectors)
    _faiss().write_index(index, str(folder / FILE))
    found = recall(index, vectors, states_of_users(recommender))
    about = {"vectors": _digest(vectors), **found}
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    return found


def states_of_users(recommender: Recommender) -> np.ndarray:
    """States of random users of the run, float32 [users, width]; of single items without users."""
    return np.asarray(_states_of(recommender, _some_histories(recommender)).fused)


def recall(index: Any, vectors: np.ndarray, states: np.ndarray) -> dict[str, float]:
    """Share of the exact lists' items that the index finds, by the lists' length."""
    scores, found = with_one(states) @ vectors.T, {}
    for number in (min(n, len(vectors)) for n in LENGTHS):
        exact = np.argpartition(-scores, number - 1, axis=1)[:, :number]
        _, own = search(index, states, number)
        shared = [np.isin(a, b).sum() for a, b in zip(exact, own, strict=True)]
        found[f"recall@{number}"] = float(np.mean(shared) / number)
    return found


def require_products(recommender: Recommender) -> None:
    """Raises UserError if scores are no products of vectors."""
    if recommender.model.memory:
        raise UserError(
            "An index needs scores that are dot products of vectors. This run has memories "
            "(--config.model.memory), so its scores are not. Train with --config.model.memory=()."
        )


class _States(NamedTuple):
    """Of histories: states float32 [rows, width], and the id stream's weight in the gate."""

    fused: jax.Array
    id_weight: jax.Array


def _newest_states(model: TSSR, params: Any, batch: Any, content: Content) -> _States:
    outputs = newest(model, params, batch, content)
    fused = outputs.fused[:, -1]
    gate = outputs.gate
    weight = jnp.full(len(fused), jnp.nan) if gate is None else gate[:, -1].mean(axis=-1)
    return _States(fused, weight)


_states = jax.jit(exactly(_newest_states), static_argnums=0)


def _states_of(recommender: Recommender, histories: Sequence[KnownHistory]) -> _States:
    rows = power(8, len(histories))
    length, side = recommender.model.max_length, side_names(recommender.model)
    nothing: list[list[int]] = [[]] * len(histories)
    batch = request_batch(histories, nothing, (rows, length, 1), side)
    params, content, _ = recommender.tables
    found = _states(recommender.model, params, batch, content)
    return _States(*(values[: len(histories)] for values in found))


def _some_histories(recommender: Recommender) -> list[KnownHistory]:
    """Histories of random users; of single items if there are no users here."""
    run, rng = recommender.run, np.random.default_rng(0)
    if not run.has_users():
        ids = recommender.items.ids
        chosen = rng.choice(len(ids), min(_MEASURED, len(ids)), replace=False)
        return [recommender.items.read([ids[i]]) for i in chosen]
    store, length = run.sequences, recommender.model.max_length
    number = store.splits.targets["test"].users.size
    found = []
    for row in rng.choice(number, min(_MEASURED, number), replace=False):
        own = {name: x[:-1].tolist() for name, x in store.answer("test", int(row), length).items()}
        profile = own.get(PROFILE, [0])[0]
        found.append(KnownHistory(own["items"], own["minutes"], [], own.get(EVENT, []), profile))
    return found


class IndexedRecommender(Recommender):
    """A recommender that finds items by an index; lists are nearly exact.

    What an index can't tell is computed exactly: lists of one stream, of some items only, and for
    histories without a known item.

    Attributes:
      index: of the items' vectors.
    """

    index: Any = None

    def use(self, folder: Path) -> "IndexedRecommender":
        """Reads the index in a folder that `write_index` wrote.

        Raises:
          UserError: if there is none, or it is that of other parameters.
        """
        require_products(self)
        if self._devices.num_devices > 1:
            raise UserError("An index serves on one device: set --config.num_devices=1.")
        for name in (FILE, ABOUT):
            if not (folder / name).is_file():
                raise UserError(
                    f"--index={folder} has no {name}. Write one: tssr export --formats=index."
                )
        try:
            digest = json.loads((folder / ABOUT).read_text())["vectors"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / ABOUT} can't be read ({shown(error)}).") from error
        if digest != _digest(indexed_vectors(self._choice, len(self.items.ids))):
            raise UserError(f"--index={folder} is of another model, or of other items.")
        try:
            self.index = _faiss().read_index(str(folder / FILE))
        except RuntimeError as error:
            raise UserError(f"{folder / FILE} can't be read ({shown(error)}).") from error
        self._whole = self._choice
        return self

    def _best(
        self, histories: Sequence[KnownHistory], top_k: int, keep_seen: bool, stream: Stream
    ) -> Any:
        whole = self._choice is self._whole and all(own.classes for own in histories)
        if stream != "fused" or not whole:
            return super()._best(histories, top_k, keep_seen, stream)
        states = _states_of(self, histories)
        seen = [() if keep_seen else set(own.classes) for own in histories]
        number = min(top_k + max(map(len, seen)), len(self.items.ids))
        scores, numbers = search(self.index, np.asarray(states.fused), number)
        classes = np.zeros((len(histories), top_k), np.int32)
        values = np.full((len(histories), top_k), -np.inf, np.float32)
        for row, own in enumerate(seen):
            kept = [i for i, x in enumerate(numbers[row]) if x >= 0 and x + 1 not in own][:top_k]
            classes[row, : len(kept)] = numbers[row, kept] + 1
            values[row, : len(kept)] = scores[row, kept]
        return Found(classes, values, np.asarray(states.id_weight))  # type: ignore[arg-type]


def _digest(vectors: np.ndarray) -> str:
    return hashlib.sha256(vectors.tobytes()).hexdigest()


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ModuleNotFoundError as error:
        raise UserError(
            "For an index the package faiss-cpu is needed: pip install 'tssr-jax[index]', or in "
            "the folder of this project pip install -c constraints.txt -e '.[index]'."
        ) from error
