"""Recommendations by a trained model, for any histories, in the owner's ids."""

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from tssr_jax.config.saved import load_config
from tssr_jax.errors import UserError, shown
from tssr_jax.evaluation.evaluate import restore_best
from tssr_jax.evaluation.ranking import Ranker
from tssr_jax.evaluation.run_metrics import RunMetrics, read_metrics
from tssr_jax.models.apply import head_weights
from tssr_jax.models.content import CONTENT_LAYOUT
from tssr_jax.models.head import unit
from tssr_jax.parallel.devices import ROWS, WHOLE, exactly
from tssr_jax.recommending.because import reasons
from tssr_jax.recommending.explaining import explanation
from tssr_jax.recommending.frames import Frame, histories_of, lists_like
from tssr_jax.recommending.histories import by_name
from tssr_jax.recommending.items import (
    ItemId,
    Items,
    KnownHistory,
    Profile,
    require_list,
    require_number,
)
from tssr_jax.recommending.new_items import read_new_items, with_new_items
from tssr_jax.recommending.results import (
    Explanation,
    Reason,
    Recommendations,
    ScoredItem,
    stream_weights,
)
from tssr_jax.recommending.saving import local_copy, save_run
from tssr_jax.recommending.step import (
    Choice,
    Found,
    Stream,
    make_recommend_step,
    power,
    request_batch,
    require_stream,
    side_names,
)
from tssr_jax.recommending.vectors import Space, item_vectors, nearest
from tssr_jax.run import Run

# Each program takes memory, and time to compile. So numbers of histories are rounded up to powers
# of 8; lengths of lists and numbers of excluded items to powers of 2, from sizes that cost nothing
# that can be measured beside 16 (docs/internals/performance.md).
_ROWS = 8
_LISTED, _EXCLUDED = 256, 1024
# Products of float32 are float32 products on TPUs and GPUs as well, as in evaluation.
_head_weights = jax.jit(exactly(head_weights), static_argnums=0)


class Recommender:
    """Ranks the whole catalogue for histories of any users.

        recommender = Recommender.from_workdir("runs/ml100k")
        (result,) = recommender.recommend([["50", "172", "181"]], top_k=5)

    Lists are exact: every item is scored, and ties go to the item that comes first in the
    catalogue.

    Attributes:
      run: configuration, data, content, devices and model.
      items: the catalogue with its owner's ids and titles.
      model: the module.
      workdir: the run's folder.
      temporary: keeps a temporary folder as long as a recommender needs it, see `fit`.

    Args:
      run: content, model and devices, each with the whole catalogue.
      params: the model's parameters, on the devices.
      items: the catalogue with its owner's ids and titles.
      batch_size: histories that are ranked at a time.
      step: of the parameters.
      workdir: the run's folder.
    """

    def __init__(  # noqa: PLR0917
        self,
        run: Run,
        params: Any,
        items: Items,
        workdir: epath.Path,
        batch_size: int = 256,
        step: int = 0,
    ):
        self.run, self.step, self.workdir = run, step, workdir
        self.items = items
        self.model = run.model
        self._devices = run.devices
        self._params = params
        self._content = Ranker(run).content(params)
        self._layouts = (run.params_layout, CONTENT_LAYOUT)
        self.batch_size = self._devices.round_up(batch_size)
        self.temporary: Any = None
        self._steps: dict[tuple[int, Stream], Callable[..., Found]] = {}
        self._vectors: dict[Space, np.ndarray] = {}
        everything = np.ones(len(items.ids) + 1, bool)
        popularity = items.counts.astype(np.float32)
        weights = _head_weights(self.model, params, self._content)
        self._choice = Choice(weights, *map(self._devices.place, (everything, popularity)))

    @classmethod
    def from_workdir(
        cls,
        workdir: str | Path | epath.Path,
        *,
        raw_dir: str | None = None,
        new_items: str | Path | None = None,
        batch_size: int = 256,
    ) -> "Recommender":
        """Restores the best checkpoint of a run.

        Args:
          workdir: the run's folder, or what `tssr export --formats=run` wrote. It has all that is
            needed; only those of older versions need the raw files again.
          raw_dir: where the raw files are now; None if they have not moved.
          new_items: a table (CSV or Parquet, with the columns of the run's own items) of items that
            training has not seen; the model ranks and reads them by their content.
          batch_size: histories that are ranked at a time.

        Raises:
          UserError: if there is no such run, its data is another, or it can't rank new items.
        """
        workdir = epath.Path(workdir).expanduser()
        kind = load_config(workdir).baseline.kind
        if kind:
            raise UserError(f"{workdir} is a run of the baseline {kind!r}, not of a model.")
        run, params, step = restore_best(workdir, raw_dir=raw_dir, whole_catalogue=True)
        items = Items.of(run)
        if new_items is not None:
            described = read_new_items(Path(new_items), run.config)
            items = items.with_more(described["item"].to_list(), described["title"].to_list())
            run, params = with_new_items(run, params, described)
        return cls(run, params, items, workdir, batch_size, step)

    @classmethod
    def from_pretrained(cls, name: str | Path | epath.Path, **settings: Any) -> "Recommender":
        """Loads what `save` wrote: a folder, or OWNER/NAME on the Hugging Face Hub."""
        return cls.from_workdir(local_copy(name), **settings)

    load = from_pretrained

    def save(self, folder: str | Path, *, sequences: bool = False) -> None:
        """Writes a new folder with what `load` needs, and a model card.

        With `sequences` it can be evaluated. Raises UserError if the folder exists, or there are
        new items, which it can't hold.
        """
        if len(self.items.ids) > self.run.data.num_items:
            raise UserError("A recommender with new items can't be saved: save it without them.")
        arguments = (self.run, *self.tables[:2], self.step, self.workdir)
        save_run(Path(folder).expanduser(), *arguments, sequences=sequences)

    @property
    def metrics(self) -> RunMetrics:
        """What the run has measured."""
        return read_metrics(self.workdir)

    @property
    def tables(self) -> tuple[Any, Any, Choice]:
        """Inputs of a ranking beside the history: parameters, content, and the choice."""
        return self._params, self._content, self._choice

    def restricted(
        self, *, only: Iterable[ItemId] | None = None, never: Iterable[ItemId] = ()
    ) -> "Recommender":
        """A recommender with a smaller choice of items.

        Args:
          only: ids of the items that may be recommended; None allows all.
          never: ids of items that may not be recommended.

        Raises:
          UserError: if `only` has no id of the catalogue, or nothing is left.
        """
        number = len(self.items.ids) + 1
        allowed = np.ones(number, bool) if only is None else self.items.mask(only, "`only`")
        allowed[self.items.known(never)[0]] = False
        if not allowed[1:].any():
            raise UserError("No item may be recommended: `never` names all that `only` allows.")
        other = copy.copy(self)
        other._choice = self._choice._replace(allowed=self._devices.place(allowed))
        return other

    def warm_up(self) -> None:
        """Compiles the programs that most calls need, so that they don't wait for it.

        These are lists of up to 256 items, for any number of histories of up to 1,024 items; for
        one history also the lists of each stream alone, an explanation and reasons; and items that
        are similar to one.
        """
        number, history = 1, self.items.ids[:1]
        while True:
            self.recommend([history] * number)
            if number == self.batch_size:
                break
            number = min(number * _ROWS, self.batch_size)
        for stream in self.apart:
            self.recommend([history], stream=stream)
        self.explain(history)
        self.because(history, history)
        self._unit_vectors("scores")

    @property
    def apart(self) -> tuple[Stream, ...]:
        """Streams that can be asked for by themselves, beside both mixed."""
        two = len(self.model.streams) > 1 and self.model.mixing != "concatenation"
        return ("id", "content") if two else ()

    @overload
    def recommend(
        self,
        histories: Sequence[Sequence[ItemId]],
        top_k: int = 10,
        *,
        times: Sequence[Sequence[float] | None] | None = None,
        events: Sequence[Sequence[str] | None] | None = None,
        profiles: Sequence[Profile | None] | None = None,
        keep_seen: bool | None = None,
        stream: Stream = "fused",
    ) -> list[Recommendations]: ...

    @overload
    def recommend(
        self,
        histories: Frame,
        top_k: int = 10,
        *,
        times: None = None,
        events: None = None,
        profiles: None = None,
        keep_seen: bool | None = None,
        stream: Stream = "fused",
    ) -> Any: ...

    def recommend(
        self,
        histories: Any,
        top_k: int = 10,
        *,
        times: Sequence[Sequence[float] | None] | None = None,
        events: Sequence[Sequence[str] | None] | None = None,
        profiles: Sequence[Profile | None] | None = None,
        keep_seen: bool | None = None,
        stream: Stream = "fused",
    ) -> Any:
        """The best items for each history.

        Args:
          histories: lists of ids of items, oldest first, of any length; the model reads the newest
            ones. Or a DataFrame with the columns of the run's interactions, see `histories_of`;
            then the lists are one, too, see `lists_like`.
          top_k: length of a list; lists are shorter where fewer items may be recommended.
          times: when the items of each history were taken, seconds since 1970; read by models with
            memories, to which items of one minute have no order. None: each item is of a time of
            its own, the newest one of now.
          events: of the items of each history; read by models whose data has them
            (`data.target_events`). None: each is the first that is predicted.
          profiles: of the users, values by fields, such as {"gender": "F"}; read by models whose
            data has them (`data.user_fields`). Values that training has not seen tell nothing.
          keep_seen: also recommend what is in the history; by default as the run was evaluated
            (`config.evaluate.keep_seen`).
          stream: "id" and "content" score by one stream alone, without memories: as if the gate
            passed nothing of the other stream, or by the stream's own expert.

        Raises:
          UserError: if top_k is no number from 1 on, a history is no list of ids, the model has no
            such stream beside another, or what belongs to the histories doesn't fit to them.
        """
        if isinstance(histories, Frame):
            if any(own is not None for own in (times, events, profiles)):
                raise UserError("With a DataFrame, pass times, events and profiles as columns.")
            read = histories_of(histories, self.run.config.data, self.items)
            more: Any = {**by_name(read), "keep_seen": keep_seen, "stream": stream}
            return lists_like(histories, read, self.recommend(top_k=top_k, **more))
        require_stream(self.model, stream)
        top_k = min(require_number(top_k), len(self.items.ids))
        columns = self.items.checked(histories, times, events, profiles)
        if keep_seen is None:
            keep_seen = self.run.config.evaluate.keep_seen
        results = []
        for start in range(0, len(columns[0]), self.batch_size):
            some = slice(start, start + self.batch_size)
            known = list(map(self.items.read, *(own[some] for own in columns)))
            found = self._best(known, top_k, keep_seen, stream)
            for row, own in enumerate(known):
                listed = self._scored(found.classes[row, :top_k], found.scores[row, :top_k])
                weights = stream_weights(float(found.id_weight[row]))
                unknown, popular = tuple(own.unknown), not own.classes
                results.append(Recommendations(listed, weights, unknown, popular))
        return results

    def similar_items(
        self, item: ItemId, top_k: int = 10, space: Space = "scores"
    ) -> tuple[ScoredItem, ...]:
        """The items that are most similar to an item, scored by the cosine of their vectors.

        Args:
          item: the owner's id.
          top_k: number of items.
          space: the vectors that are compared, see `vectors`.

        Raises:
          UserError: if the item is unknown or has no vector there, or top_k is below 1.
        """
        top_k = require_number(top_k)
        of, vectors = self.items.class_of(item), self._unit_vectors(space)
        if not vectors[of].any():
            raise UserError(f"Item {shown(item)!r} has no vector of {space!r}: nothing is like it.")
        return self._scored(*nearest(vectors, of, np.asarray(self._choice.allowed), top_k))

    def vectors(self, space: Space = "scores") -> np.ndarray:
        """Vectors of all classes, float32 [num_items + 1, width], see `item_vectors`."""
        return item_vectors(space, self.model, *self.tables[:2], self._choice.weights)

    def explain(
        self,
        history: Sequence[ItemId],
        events: Sequence[str] | None = None,
        profile: Profile | None = None,
    ) -> Explanation:
        """What the model looks at in a history; for events and profile see `recommend`.

        Raises:
          UserError: if none of its items is known, or events or profile don't fit.
        """
        ((own,), *more) = self.items.checked([history], None, [events], [profile])
        known = self.items.read(own, *(values[0] for values in more))
        return explanation(self.model, *self.tables[:2], self.items, known)

    def because(
        self,
        history: Sequence[ItemId],
        items: Sequence[ItemId],
        times: Sequence[float] | None = None,
    ) -> tuple[tuple[Reason, ...], ...]:
        """Explains scores: the history's items that raised each item's score through memories.

        Args:
          history: ids, oldest first.
          items: ids, such as those of a list.
          times: of the history's items, see `recommend`.

        Returns:
          For each of `items` reasons, the strongest first. Their scores add up to what all memories
          but popularity add to the item's score. There are none without memories or a known item.

        Raises:
          UserError: if one of `items` is unknown, or times don't fit.
        """
        places = [self.items.class_of(item) for item in require_list(items)]
        (own,), (when,), *_ = self.items.checked([history], [times])
        known = self.items.read(own, when)
        return reasons(self.model, self._params, self._content.memories, self.items, known, places)

    def _best(
        self, histories: Sequence[KnownHistory], top_k: int, keep_seen: bool, stream: Stream
    ) -> Any:
        """`Found` of some users, on the host; sizes are rounded up, so that little is compiled."""
        rows = self._devices.round_up(min(self.batch_size, power(_ROWS, len(histories))))
        seen = [[] if keep_seen else list(dict.fromkeys(own.classes)) for own in histories]
        width = max(_EXCLUDED, power(2, max(map(len, seen))))
        shape = (rows, self.model.max_length, width)
        batch = request_batch(histories, seen, shape, side_names(self.model))
        k = min(max(_LISTED, power(2, top_k)), len(self.items.ids))
        if (k, stream) not in self._steps:
            params_layout, content_layout = self._layouts
            self._steps[k, stream] = self._devices.run(
                make_recommend_step(self.model, k, stream),
                inputs=(params_layout, ROWS, content_layout, WHOLE),
            )
        found = self._steps[k, stream](self._params, batch, self._content, self._choice)
        return jax.device_get(found)

    def _scored(self, classes: np.ndarray, scores: np.ndarray) -> tuple[ScoredItem, ...]:
        """Classes with their ids, titles and scores; skips class 0."""
        ids, titles = self.items.ids, self.items.titles
        return tuple(
            ScoredItem(ids[place - 1], titles[place - 1], score)
            for place, score in zip(classes.tolist(), scores.tolist(), strict=True)
            if place
        )

    def _unit_vectors(self, space: Space) -> np.ndarray:
        if space not in self._vectors:
            self._vectors[space] = np.array(unit(jnp.asarray(self.vectors(space))))
        return self._vectors[space]
