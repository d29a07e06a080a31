"""The service as a process: fuzzed by its own description, under load, and stopped."""

import asyncio
import collections
import os
import re
import signal
import subprocess
import sys

import httpx
import pytest

from tests.support.runs import ROOT
from tests.support.services import start

MOST_AT_ONCE = 8


@pytest.fixture(name="address", scope="module")
def fixture_address(workdir):
    process, address = start(workdir, f"--most_at_once={MOST_AT_ONCE}")
    yield address
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "Stopped by SIGTERM" in output and "Traceback" not in output


def test_no_input_breaks_it(address):
    """Schemathesis makes requests of the service's own description; none may give a 5xx."""
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json",
         "--checks=not_a_server_error,status_code_conformance,content_type_conformance,"
         "response_schema_conformance",
         "--max-examples=40", "--seed=0", "--workers=1", "--no-color"],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"CI": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) generated", done.stdout)[1]) > 200, done.stdout[-3000:]


async def load(address, users, requests, histories=1):
    """Statuses of so many requests by users that ask again as soon as they are answered."""
    statuses = collections.Counter()
    limits = httpx.Limits(max_connections=None)

    async def ask_often(client, user):
        for i in range(requests):
            asked = {"histories": [[f"i{(user + i) % 20}"]] * histories, "top_k": 3}
            answer = await client.post(f"{address}/recommend", json=asked)
            statuses[answer.status_code] += 1
            if answer.status_code == 200:
                for told in answer.json()["results"]:
                    assert len(told["items"]) == 3 and not told["popular"]

    async with httpx.AsyncClient(limits=limits, timeout=60) as client:
        await asyncio.gather(*(ask_often(client, user) for user in range(users)))
    return statuses


def test_nothing_is_dropped_at_the_announced_concurrency(address):
    about = httpx.get(f"{address}/about").json()
    assert about["most_at_once"] == MOST_AT_ONCE
    assert asyncio.run(load(address, MOST_AT_ONCE, 25)) == {200: 25 * MOST_AT_ONCE}
    beyond = asyncio.run(load(address, 6 * MOST_AT_ONCE, 10, histories=64))
    assert set(beyond) == {200, 503} and sum(beyond.values()) == 60 * MOST_AT_ONCE
    assert httpx.get(f"{address}/healthz").status_code == 200


@pytest.mark.parametrize("path", ["/", "/healthz"])
def test_a_monitor_may_ask_for_the_head_only(address, path):
    whole, head = httpx.get(address + path), httpx.head(address + path)
    assert head.status_code == 200 and not head.content
    assert head.headers["content-length"] == str(len(whole.content))


def test_a_sigterm_lets_requests_end(workdir):
    process, address = start(workdir)
    body = {"histories": [[f"i{i}"] * 300 for i in range(20)], "top_k": 20}

    async def run():
        async with httpx.AsyncClient(timeout=60) as client:
            task = asyncio.create_task(client.post(f"{address}/recommend", json=body))
            await asyncio.sleep(0.5)  # lists of this length are compiled meanwhile
            process.send_signal(signal.SIGTERM)
            return await task

    answer = asyncio.run(run())
    assert answer.status_code == 200 and len(answer.json()["results"]) == 20
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output


def test_a_port_that_is_taken_is_told_at_once(address, workdir):
    port = address.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "-m", "tssr_jax.main", "--mode=serve", f"--workdir={workdir}",
         f"--port={port}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "choose another --port" in done.stderr


def test_without_its_packages_it_says_so(workdir):
    program = "import sys; sys.modules['fastapi'] = None\n"
    program += "from tssr_jax.main import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--mode=serve", f"--workdir={workdir}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "-e '.[serve]'" in done.stderr
