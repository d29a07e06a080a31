"""Counts and times of requests, for Prometheus."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Monitoring:
    """Records path, status and time of each request; paths that do not exist count as one.

    Args:
      app: what is watched.
      registry: where the numbers are kept.
      paths: the existing paths.
    """

    def __init__(self, app: ASGIApp, registry: CollectorRegistry, paths: frozenset[str]):
        self._app = app
        self._paths = paths
        self._requests = Counter(
            "tssr_requests", "Requests answered.", ("path", "status"), registry=registry
        )
        self._seconds = Histogram(
            "tssr_request_seconds",
            "From a request to the end of its answer.",
            ("path",),
            registry=registry,
            buckets=_SECONDS,
        )
        self._now = Gauge("tssr_requests_now", "Requests being answered.", registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        status = 500  # of what ends without an answer
        start = time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._now.inc()
        try:
            await self._app(scope, receive, noted)
        finally:
            self._now.dec()
            self._requests.labels(path, status).inc()
            self._seconds.labels(path).observe(time.perf_counter() - start)
