"""How a program ends that is told to."""

import signal
import subprocess
import sys
import time

import pytest

from tests.support.runs import ROOT
from tssr_jax import __version__
from tssr_jax.main import MODES, main

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


LOST = """
import gc, time
from tssr_jax import cli

def main():
    gc.callbacks.append(lambda *_: time.sleep(0.15))  # where exceptions are lost
    print("ready", flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        gc.collect()
        time.sleep(0.1)

cli.run(main)
"""


@pytest.mark.parametrize(
    ("number", "status", "told"), [(signal.SIGINT, 1, "interrupted"), (signal.SIGTERM, 0, "")]
)
def test_a_signal_that_was_lost_in_a_callback_comes_again(number, status, told):
    process = subprocess.Popen(
        [sys.executable, "-c", LOST],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    begin = time.monotonic()
    process.send_signal(number)
    output, errors = process.communicate(timeout=50)
    assert time.monotonic() - begin < 30
    assert process.returncode in {status, 130} and told in errors and "Traceback" not in errors
    assert number == signal.SIGINT or "Stopped by SIGTERM" in output


INSTEAD = """
import time
from tssr_jax import cli

def main():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except BaseException as error:
        raise ImportError("initialization failed") from error  # as C modules do

cli.run(main)
"""


def test_another_error_in_the_place_of_ctrl_c_is_told_as_ctrl_c():
    process = subprocess.Popen(
        [sys.executable, "-c", INSTEAD], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and errors.startswith(b"Error: interrupted")
    assert b"Traceback" not in errors


def test_a_worker_ends_whose_parent_is_gone_before_it_looks():
    program = "import time; from tssr_jax.runtime import end_with_parent; end_with_parent(1, 0.1)"
    process = subprocess.Popen([sys.executable, "-c", f"{program}; time.sleep(60)"], cwd=ROOT)
    assert process.wait(timeout=30) == -signal.SIGTERM


def test_the_version_is_told(capsys):
    main(["tssr", "--version"])
    assert capsys.readouterr().out == f"tssr_jax {__version__}\n"


@pytest.mark.parametrize("words", [["--help"], ["help"], ["help", "train"]])
def test_help_lists_all_modes(words, capsys):
    main(["tssr", *words])
    told = capsys.readouterr().out
    assert all(f"  {mode} " in told for mode in MODES)
