"""Histories of requests that come at the same time are ranked together.

One history costs nearly as much as a batch. While one thread ranks a batch, new requests wait and
form the next batch.
"""

import asyncio
import dataclasses
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tssr_jax.recommending.items import ItemId, Profile
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.recommending.results import Recommendations
from tssr_jax.recommending.step import Stream


@dataclasses.dataclass
class _Waiting:
    """A request's histories with times, events and profiles, and where their lists go."""

    columns: tuple[Sequence[Any], ...]
    top_k: int
    lists: asyncio.Future[list[Recommendations]]

    @property
    def number(self) -> int:
        """How many histories there are."""
        return len(self.columns[0])


class Batcher:
    """Answers many callers by few calls of a recommender.

    Args:
      recommender: ranks; called by one thread at a time.
      executor: runs this thread.
    """

    def __init__(self, recommender: Recommender, executor: ThreadPoolExecutor):
        self._recommender = recommender
        self._executor = executor
        self._most = recommender.batch_size
        self._waiting: dict[tuple[bool | None, Stream], list[_Waiting]] = {}
        self._task: asyncio.Task[None] | None = None

    async def recommend(
        self,
        histories: Sequence[Sequence[ItemId]],
        top_k: int,
        *,
        times: Sequence[Sequence[float] | None] | None = None,
        events: Sequence[Sequence[str] | None] | None = None,
        profiles: Sequence[Profile | None] | None = None,
        keep_seen: bool | None,
        stream: Stream,
    ) -> list[Recommendations]:
        """As `Recommender.recommend`.

        Raises:
          UserError: if times, events or profiles don't fit; others who are ranked together with
            it don't notice.
        """
        columns = self._recommender.items.checked(histories, times, events, profiles)
        own = _Waiting(columns, top_k, asyncio.get_running_loop().create_future())
        self._waiting.setdefault((keep_seen, stream), []).append(own)
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await own.lists

    async def _work(self) -> None:
        """Ranks until nobody waits."""
        while self._waiting:
            key = next(iter(self._waiting))
            requests = self._next_batch(key)
            if requests:
                await self._answer(requests, *key)
        self._task = None

    def _next_batch(self, key: tuple[bool | None, Stream]) -> list[_Waiting]:
        """The requests that came first, with up to as many histories as are ranked at a time."""
        waiting = self._waiting[key]
        requests: list[_Waiting] = []
        number = 0
        while waiting and (not requests or number + waiting[0].number <= self._most):
            one = waiting.pop(0)
            if not one.lists.done():  # the caller may have given up
                requests.append(one)
                number += one.number
        del self._waiting[key]
        if waiting:  # the others' turn comes first
            self._waiting[key] = waiting
        return requests

    async def _answer(
        self, requests: list[_Waiting], keep_seen: bool | None, stream: Stream
    ) -> None:
        columns = zip(*(one.columns for one in requests), strict=True)
        histories, *more = (list(itertools.chain(*own)) for own in columns)
        named = dict(zip(("times", "events", "profiles"), more, strict=True))
        top_k = max(one.top_k for one in requests)

        def rank() -> list[Recommendations]:
            return self._recommender.recommend(
                histories, top_k, **named, keep_seen=keep_seen, stream=stream
            )

        try:
            lists = await asyncio.get_running_loop().run_in_executor(self._executor, rank)
        except (Exception, asyncio.CancelledError) as error:
            for one in requests:  # each who waits raises it again
                if not one.lists.done():
                    one.lists.set_exception(error)
            return
        start = 0
        for one in requests:
            own = lists[start : start + one.number]
            start += one.number
            if not one.lists.done():  # the caller may have given up
                one.lists.set_result(
                    [dataclasses.replace(x, items=x.items[: one.top_k]) for x in own]
                )
