"""How a program ends that is told to."""

import signal
import subprocess
import sys
import time

from tests.support.runs import ROOT

PROGRAM = """
import time
from tssr_jax import cli

def main():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)

cli.run(main)
"""


STUCK = """
import hashlib
from tssr_jax import cli

def main():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # native code that looks at no signal

cli.run(main)
"""


def test_ctrl_c_ends_native_code_within_seconds():
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    time.sleep(1)  # until it is inside
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told.startswith(b"Error: interrupted. The same command goes on")


DEAF = """
import time
from tssr_jax import cli

def main():
    while True:
        try:
            print("ready", flush=True)
            time.sleep(60)
        except BaseException:  # as in a callback, whose exceptions are lost
            print("lost", flush=True)

cli.run(main)
"""


def test_a_second_ctrl_c_ends_what_lost_the_first():
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"lost\n"
    time.sleep(4)  # on a busy machine, until the first one has been seen
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told.startswith(b"Error: interrupted. The same command goes on")


def test_a_sigterm_cleans_up_and_exits_0_with_a_message():
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert output.startswith("cleaned up\nStopped by SIGTERM.")
