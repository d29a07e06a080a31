"""State that all routes of the service share: the recommender, its thread, items as JSON fields."""

import asyncio
import dataclasses
import mimetypes
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tssr_jax.data_pipeline.texts import SEPARATOR
from tssr_jax.recommending.examples import Example, example
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.recommending.results import Reason, ScoredItem
from tssr_jax.serving import schemas
from tssr_jax.serving.batching import Batcher
from tssr_jax.serving.title_search import TitleSearch

_T = TypeVar("_T")
# Characters of an item's text in answers, and items of an example's history.
_LONGEST_TEXT, _LONGEST_EXAMPLE = 160, 30


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the service.

    Attributes:
      most_at_once: requests that are computed or wait for it; further ones get 503.
      most_bytes: the largest size of a request's body; larger ones get 413.
      seconds: the longest time until an answer; slower ones get 504.
      allowed_hosts: names that requests may have in their header Host; "*" allows all.
    """

    most_at_once: int = 64
    most_bytes: int = 2**22
    seconds: float = 10.0
    allowed_hosts: tuple[str, ...] = ("*",)


DEFAULT_LIMITS = Limits()


class Service:
    """What the routes share.

    Args:
      recommender: ranks.
      workdir: the run's folder; /about reports its last part.
      limits: reported by /about.
      examples: show histories of the data, if they are at hand.
    """

    def __init__(self, recommender: Recommender, workdir: str, limits: Limits, *, examples: bool):
        self.recommender = recommender
        self.limits = limits
        self.name = Path(workdir).name
        self.search = TitleSearch(recommender.items)
        # One thread: a ranking uses all cores itself.
        self.executor = ThreadPoolExecutor(1, "ranking")
        self.batcher = Batcher(recommender, self.executor)
        # Training has read the answers of a run that holds nothing out.
        unread = "test" in recommender.run.config.evaluate.held_out
        self.examples = examples and unread and recommender.run.has_users()
        self._images, self._texts = recommender.run.data.images, recommender.run.data.texts
        folder = Path(recommender.run.config.data.raw_dir or ".")
        self._folder = folder.expanduser().resolve()
        recommender.items.find("")  # the index of ids is made now, not by the first request

    async def compute(self, function: Callable[[], _T]) -> _T:
        """Calls a function in the ranking's thread."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, function)

    def image_name(self, place: int) -> str:
        """The path of a class's picture in the data; "" if there is none, or it is a URL."""
        name = self._images[place - 1] if 1 <= place <= len(self._images) else ""
        return "" if "://" in name else name

    def image(self, place: int) -> Path | None:
        """The picture of a class, where it lies below the raw files; no other kind of file."""
        name = self.image_name(place)
        path = (self._folder / name).resolve()
        kind, _ = mimetypes.guess_type(path.name)
        picture = kind is not None and kind.startswith("image/") and kind != "image/svg+xml"
        inside = path.is_relative_to(self._folder) and path.is_file()
        return path if name and inside and picture else None

    def text(self, place: int) -> str:
        """The beginning of a class's text after its title."""
        if not 1 <= place <= len(self._texts):
            return ""
        title = self.recommender.items.titles[place - 1]
        own = self._texts[place - 1].removeprefix(title).removeprefix(SEPARATOR)
        return own if len(own) <= _LONGEST_TEXT else f"{own[:_LONGEST_TEXT].rstrip()} ..."

    def example(self, number: int | None) -> Example:
        """See `recommending.examples`; a random one by default."""
        chosen = random.randrange(2**31) if number is None else number
        return example(self.recommender.run, chosen, _LONGEST_EXAMPLE)

    def item(self, place: int) -> dict[str, Any]:
        """Fields of `schemas.Item` of a class."""
        items = self.recommender.items
        image = f"/image/{place}" if self.image_name(place) else None
        return {
            "item": items.ids[place - 1],
            "title": items.titles[place - 1],
            "text": self.text(place),
            "image": image,
        }

    def scored(self, some: Iterable[ScoredItem]) -> list[schemas.Scored]:
        """A list of items as it is sent."""
        class_of = self.recommender.items.class_of
        return [schemas.Scored(score=x.score, **self.item(class_of(x.item))) for x in some]

    def reasons(self, some: Iterable[Reason]) -> list[schemas.Reason]:
        """Reasons for one item as they are sent."""
        class_of = self.recommender.items.class_of
        return [
            schemas.Reason(memory=x.memory, score=x.score, **self.item(class_of(x.item)))
            for x in some
        ]
