"""Services as processes of their own."""

import socket
import subprocess
import sys
import time

import httpx

from tests.support.runs import ROOT


def start(workdir, *flags):
    """The process, once it answers, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "tssr_jax.main", "--mode=serve", f"--workdir={workdir}",
         f"--port={port}", *flags],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"{address}/healthz")
        except httpx.TransportError:
            time.sleep(0.2)
        else:
            return process, address
    process.kill()
    raise AssertionError(process.communicate()[0])
