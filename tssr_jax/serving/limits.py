"""Limits of requests: size, number at once, and time. They act before the routes."""

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Reads a request's body before anything else does.

    Answers 413 if it is too long, and 503 while the bodies that wait for their ends fill the room.

    Args:
      app: what is protected.
      most_bytes: the largest size of a body, announced or not.
      most_held: bytes of all bodies whose requests are not answered yet.
    """

    def __init__(self, app: ASGIApp, most_bytes: int, most_held: int):
        self._app = app
        self._most_bytes, self._most_held = most_bytes, most_held
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what is not too long."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        length = int(announced) if announced.isdigit() else 0
        messages: list[Message] = []
        received, more = 0, True
        try:
            while more and max(length, received) <= self._most_bytes:
                if self._held > self._most_held:
                    detail = "Too much is being sent at once: try again in a moment."
                    busy = JSONResponse({"detail": detail}, 503, {"Retry-After": "1"})
                    await busy(scope, receive, send)
                    return
                messages.append(await receive())
                size = len(messages[-1].get("body", b""))
                received, self._held = received + size, self._held + size
                more = messages[-1].get("more_body", False)
            if max(length, received) > self._most_bytes:
                detail = f"A request's body may have {self._most_bytes:,} bytes."
                await JSONResponse({"detail": detail}, 413)(scope, receive, send)
                return

            async def again() -> Message:
                return messages.pop(0) if messages else await receive()

            await self._app(scope, again, send)
        finally:
            self._held -= received


class Concurrency:
    """Answers 503 to requests that come while `most` requests are being answered.

    Args:
      app: what is protected.
      most: the most requests at once.
      paths: paths that are counted; others always pass, so that health checks work.
    """

    def __init__(self, app: ASGIApp, most: int, paths: frozenset[str]):
        self._app = app
        self._most = most
        self._paths = paths
        self._now = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what there is room for."""
        if scope["type"] != "http" or scope["path"] not in self._paths:
            await self._app(scope, receive, send)
            return
        if self._now >= self._most:
            detail = f"{self._most} requests are being answered: try again in a moment."
            response = JSONResponse({"detail": detail}, 503, {"Retry-After": "1"})
            await response(scope, receive, send)
            return
        self._now += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._now -= 1


class Timeout:
    """Answers 504 when an answer takes longer than a time limit.

    Args:
      app: what is protected.
      seconds: from the request's head to the answer's head.
    """

    def __init__(self, app: ASGIApp, seconds: float):
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Waits for the answer up to the time limit."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            deadline.reschedule(None)  # a slow reader is allowed
            await send(message)

        try:
            async with asyncio.timeout(self._seconds) as deadline:
                await self._app(scope, receive, noted)
        except TimeoutError:
            if started:
                raise
            detail = f"There was no answer within {self._seconds:g} seconds."
            await JSONResponse({"detail": detail}, 504)(scope, receive, send)
