"""The HTTP application: routes, limits, page."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.middleware.trustedhost import TrustedHostMiddleware

from tssr_jax.errors import UserError, shown
from tssr_jax.recommending.index import IndexedRecommender
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.recommending.results import Recommendations
from tssr_jax.serving import schemas
from tssr_jax.serving.limits import BodyLimit, Concurrency, Timeout
from tssr_jax.serving.monitoring import Monitoring
from tssr_jax.serving.service import DEFAULT_LIMITS, Limits, Service

PAGE = Path(__file__).parent / "page"
_COMPUTING = frozenset(
    {"/recommend", "/similar", "/explain", "/because", "/search", "/items", "/example"}
)
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Problem, "description": description}
    for status, description in (
        (400, "What is asked for makes no sense for this model."),
        (413, "The body is too large."),
        (503, "Too many requests at once; try again."),
        (504, "There was no answer in time."),
    )
}
# Bodies of the largest size that may wait for their ends, or answers, at once.
_BODIES_HELD = 16
# The most problems of one body that are reported.
_MOST_PROBLEMS = 20
_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": schemas.Problem, "description": "There is no such item."}
}
# Headers that a proxy adds.
_OF_PROXIES = frozenset({"forwarded", "x-forwarded-for", "x-real-ip", "via"})
# The page loads nothing from elsewhere, and may not.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; style-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def create_app(
    recommender: Recommender,
    workdir: str,
    limits: Limits = DEFAULT_LIMITS,
    *,
    examples: bool = False,
) -> FastAPI:
    """The web application: recommendations, items, the page, metrics.

    It answers requests at once; the first rankings wait for their programs to compile.

    Args:
      recommender: ranks.
      workdir: the run's folder; the page shows its last part.
      limits: sizes, concurrency, time.
      examples: show histories of the data to all who ask, if they are at hand.
    """
    service = Service(recommender, workdir, limits, examples=examples)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.executor.shutdown(wait=False, cancel_futures=True)

    app: FastAPI = FastAPIOffline(
        title="tssr_jax",
        version="1",
        summary="Recommendations by a trained model.",
        lifespan=lifespan,
        redoc_url=None,
    )
    _add_rankings(app, service)
    _add_reasons(app, service)
    _add_lookups(app, service)
    _add_pages(app, service)
    registry = CollectorRegistry()

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    app.add_exception_handler(UserError, _told)
    app.add_exception_handler(RequestValidationError, _where)

    # The last one added sees a request first. (A request counts once its body has arrived.)
    app.add_middleware(Concurrency, most=limits.most_at_once, paths=_COMPUTING)
    most_held = _BODIES_HELD * limits.most_bytes
    app.add_middleware(BodyLimit, most_bytes=limits.most_bytes, most_held=most_held)
    app.add_middleware(Timeout, seconds=limits.seconds)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(limits.allowed_hosts))
    paths = frozenset({*_COMPUTING, "/healthz", "/metrics", "/about", "/"})
    app.add_middleware(Monitoring, registry=registry, paths=paths)
    return app


async def _told(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 400)


async def _where(_: Request, error: Exception) -> Response:
    """Lists the problems of a body, without its input, which may not be valid text."""
    assert isinstance(error, RequestValidationError)
    some = error.errors()[:_MOST_PROBLEMS]
    problems = [
        {
            "type": one["type"],
            "loc": [shown(part) if isinstance(part, str) else part for part in one["loc"]],
            "msg": shown(one["msg"], 300),
        }
        for one in some
    ]
    text = json.dumps({"detail": problems}, ensure_ascii=True, default=str)
    return Response(text, 422, media_type="application/json")


def _add_rankings(app: FastAPI, service: Service) -> None:
    recommender = service.recommender
    number = len(recommender.items.ids)

    @app.post("/recommend", responses=_PROBLEMS)
    async def recommend(asked: schemas.RecommendRequest) -> schemas.RecommendResponse:
        """The best items for each history, the seen ones left out."""
        top_k = min(asked.top_k, number)
        if asked.only is None and not asked.never:
            lists = await service.batcher.recommend(
                asked.histories,
                top_k,
                times=asked.times,
                events=asked.events,
                profiles=asked.profiles,
                keep_seen=asked.keep_seen,
                stream=asked.stream,
            )
        else:
            lists = await service.compute(
                lambda: recommender.restricted(only=asked.only, never=asked.never).recommend(
                    asked.histories,
                    top_k,
                    times=asked.times,
                    events=asked.events,
                    profiles=asked.profiles,
                    keep_seen=asked.keep_seen,
                    stream=asked.stream,
                )
            )
        results = [
            schemas.ListOfItems(
                items=service.scored(own.items),
                stream_weights=_weights(own),
                unknown=list(own.unknown),
                popular=own.popular,
            )
            for own in lists
        ]
        return schemas.RecommendResponse(results=results)

    @app.post("/similar", responses=_PROBLEMS | _NOT_FOUND)
    async def similar(asked: schemas.SimilarRequest) -> schemas.SimilarResponse:
        """The items that are most like one, of all or of `only`."""
        if recommender.items.find(asked.item) is None:
            raise HTTPException(404, f"There is no item {shown(asked.item)!r}.")
        some = recommender if asked.only is None else recommender.restricted(only=asked.only)
        found = await service.compute(
            lambda: some.similar_items(asked.item, asked.top_k, asked.space)
        )
        return schemas.SimilarResponse(items=service.scored(found))


def _add_reasons(app: FastAPI, service: Service) -> None:
    recommender = service.recommender

    @app.post("/explain", responses=_PROBLEMS)
    async def explain(asked: schemas.ExplainRequest) -> schemas.ExplainResponse:
        """What the model looks at in a history."""
        told = await service.compute(
            lambda: recommender.explain(asked.history, asked.events, asked.profile)
        )
        weights = [None] * len(told.items) if told.id_weight is None else told.id_weight.tolist()
        class_of = recommender.items.class_of
        return schemas.ExplainResponse(
            items=[
                schemas.Looked(id_weight=weight, **service.item(class_of(item)))
                for (item, _), weight in zip(told.items, weights, strict=True)
            ],
            layers=list(told.layers),
            attention={stream: rows.tolist() for stream, rows in told.attention.items()},
            unknown=list(told.unknown),
        )

    @app.post("/because", responses=_PROBLEMS)
    async def because(asked: schemas.BecauseRequest) -> schemas.BecauseResponse:
        """Because of which items of a history memories speak for other items."""
        found = await service.compute(
            lambda: recommender.because(asked.history, asked.items, asked.times)
        )
        return schemas.BecauseResponse(results=[service.reasons(own) for own in found])


def _add_lookups(app: FastAPI, service: Service) -> None:
    recommender = service.recommender

    def shows_examples(request: Request) -> bool:
        """Not through a proxy, behind which anyone may be."""
        return service.examples and not _OF_PROXIES & {name.lower() for name in request.headers}

    @app.get("/search", responses=_PROBLEMS)
    async def search(
        q: Annotated[str, Query(min_length=1, max_length=100)],
        limit: Annotated[int, Query(ge=1, le=50)] = 10,
    ) -> schemas.ItemsResponse:
        """Items whose title has all words of the query, the most popular ones first."""
        found = await asyncio.to_thread(service.search, q, limit)
        return schemas.ItemsResponse(items=[schemas.Item(**service.item(x)) for x in found])

    @app.get("/items", responses=_PROBLEMS)
    async def items(
        id: Annotated[list[str], Query(min_length=1, max_length=schemas.MOST_ITEMS)],
    ) -> schemas.ItemsResponse:
        """The items of these ids; unknown ones are left out."""
        classes, _ = recommender.items.known(id)
        return schemas.ItemsResponse(items=[schemas.Item(**service.item(x)) for x in classes])

    @app.get("/example", responses=_PROBLEMS | _NOT_FOUND)
    async def example(
        request: Request,
        number: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    ) -> schemas.ExampleResponse:
        """The history of a user of the data and what they took next; a random user's by default."""
        if not shows_examples(request):
            raise HTTPException(404, "This service shows no histories of its data.")
        own = await asyncio.to_thread(service.example, number)
        class_of = recommender.items.class_of
        history, answer = (
            [schemas.Item(**service.item(class_of(item))) for item in some]
            for some in (own.items, (own.answer,))
        )
        return schemas.ExampleResponse(
            number=own.number,
            history=history,
            times=list(own.times),
            events=list(own.events) or None,
            profile=own.profile,
            answer=answer[0],
        )

    @app.get("/about")
    async def about(request: Request) -> schemas.About:
        """What is served."""
        return schemas.About(
            name=service.name,
            items=len(recommender.items.ids),
            streams=list(recommender.model.streams),
            events=list(recommender.items.events),
            usual_event=recommender.items.usual_event,
            fields={name: list(own) for name, own in recommender.items.profile_fields.items()},
            apart=list(recommender.apart),
            index=isinstance(recommender, IndexedRecommender),
            max_length=recommender.model.max_length,
            most_at_once=service.limits.most_at_once,
            examples=shows_examples(request),
        )

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the service answers."""
        return {"status": "ok"}


def _weights(own: Recommendations) -> schemas.StreamWeights | None:
    return schemas.StreamWeights(**own.stream_weights) if own.stream_weights else None


def _add_pages(app: FastAPI, service: Service) -> None:
    @app.get("/image/{place}", response_class=FileResponse, responses=_NOT_FOUND)
    async def image(place: int) -> FileResponse:
        """The picture of an item, as lists name it."""
        path = await asyncio.to_thread(service.image, place)
        if path is None:
            raise HTTPException(404, "There is no such picture.")
        return FileResponse(path, headers=_HEADERS)

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=_HEADERS)

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
