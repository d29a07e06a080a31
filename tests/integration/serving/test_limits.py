"""Who may ask, and for how long a connection may say nothing."""

import asyncio
import threading
import time

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient

from tssr_jax.serving.app import create_app
from tssr_jax.serving.limits import BodyLimit
from tssr_jax.serving.server import TimedHeads, allowed_hosts, shows_examples
from tssr_jax.serving.service import Limits


def test_a_name_of_elsewhere_is_refused(recommender):
    hosts = allowed_hosts("127.0.0.1", None)
    with TestClient(create_app(recommender, "run", Limits(allowed_hosts=hosts))) as client:
        good = ("localhost:8000", "127.0.0.1", "[::1]:8000")
        for host, status in (*((name, 200) for name in good), ("evil.example", 400)):
            assert client.get("/healthz", headers={"Host": host}).status_code == status


def test_which_names_are_allowed():
    assert allowed_hosts("0.0.0.0", None) == ("*",)
    assert allowed_hosts("0.0.0.0", ["shop.example"]) == ("shop.example",)
    assert allowed_hosts("localhost", None) == allowed_hosts("::1", None)
    assert "*" not in allowed_hosts("::1", None)


def test_histories_are_shown_on_this_machine_alone_unless_asked_for():
    assert shows_examples("127.0.0.1", None, None) and shows_examples("::1", [], None)
    assert not shows_examples("0.0.0.0", None, None)
    assert not shows_examples("127.0.0.1", ["shop.example"], None)
    assert shows_examples("0.0.0.0", None, True) and not shows_examples("localhost", None, False)


def test_bodies_that_wait_for_their_ends_are_bounded():
    """There is room for one of two slow bodies; the other is told to come again, and frees it."""
    ends = asyncio.Event()

    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    limited = BodyLimit(app, most_bytes=1_000, most_held=1_500)

    async def body():
        yield b"x" * 800
        await ends.wait()
        yield b"x" * 100

    async def run():
        transport = httpx.ASGITransport(limited)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            slow = [asyncio.create_task(client.post("/", content=body())) for _ in range(2)]
            await asyncio.sleep(0.1)
            third = await client.post("/", content=b"x" * 10)
            ends.set()
            statuses = [(await one).status_code for one in slow]
            after = await client.post("/", content=b"x" * 10)
        return third.status_code, sorted(statuses), after.status_code

    third, slow, after = asyncio.run(run())
    assert slow == [200, 503] and third == after == 200


LARGE = 2**26


@pytest.fixture(name="port")
def fixture_port(monkeypatch):
    """A server that answers after 0.6 seconds, and waits 0.3 seconds for a head.

    The path /large has LARGE bytes.
    """
    monkeypatch.setattr(TimedHeads, "seconds", 0.3)

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await asyncio.sleep(0.6)
        large = scope["path"] == "/large"
        status = 200 if large else 204
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": bytes(LARGE if large else 0)})

    config = uvicorn.Config(app, port=0, http=TimedHeads, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def test_a_head_that_does_not_end_closes_the_connection(port):
    async def run():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for part in (b"GET / HTTP/1.1\r\n", b"Host: x\r\n\r\n"):  # a whole head
            writer.write(part)
            await asyncio.sleep(0.1)
        assert b"204" in await reader.readuntil(b"\r\n")  # though it took longer
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET / HTTP/1.1\r\n")  # the next one is not
        begin = time.monotonic()
        assert await reader.read() == b""
        return time.monotonic() - begin

    assert asyncio.run(run()) < 5


@pytest.mark.parametrize("reads", [True, False])
def test_an_answer_that_is_not_read_is_given_up(port, reads):
    """One that is read slowly is not: a part each 0.05 seconds."""

    async def run():
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await writer.drain()
        if not reads:
            writer.transport.pause_reading()
            await asyncio.sleep(3)
            writer.transport.resume_reading()
        total, part = 0, b"x"
        while part:
            try:
                part = await reader.read(2**21)
            except ConnectionError:
                break
            total += len(part)
            await asyncio.sleep(0.001)
        return total

    assert (asyncio.run(run()) > LARGE) == reads
