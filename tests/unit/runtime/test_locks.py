"""One writer: others are refused at once; locks of dead processes do not count."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

from tssr_jax import locks
from tssr_jax.errors import UserError

HOLD = """
import sys, time
from etils import epath
from tssr_jax.locks import one_writer
with one_writer(epath.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture(name="holder")
def fixture_holder(tmp_path):
    """A process that writes to the folder tmp_path/run."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_another_writer_is_refused_until_the_first_is_dead(tmp_path, holder):
    folder = epath.Path(tmp_path / "run")
    for refuse in (locks.require_no_writer, lambda f: locks.one_writer(f).__enter__()):
        with pytest.raises(UserError, match=rf"run is in use: process {holder.pid} on .* since 20"):
            refuse(folder)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    locks.require_no_writer(folder)
    with locks.one_writer(folder):
        assert json.loads((folder / locks.FILE).read_text())["pid"] == os.getpid()
    assert not (folder / locks.FILE).exists()


@pytest.mark.parametrize("name", ["exp[1]", "a]", "a\\b", "a[b/c"])
def test_paths_that_checkpoints_can_not_have(tmp_path, name):
    for refuse in (locks.require_no_writer, lambda f: locks.one_writer(f).__enter__()):
        with pytest.raises(UserError, match=r"can't be read there. Choose another --workdir"):
            refuse(epath.Path(tmp_path / name))
    assert not list(tmp_path.iterdir())


def test_a_path_that_is_not_utf8(tmp_path):
    name = os.fsdecode(b"run-\xff")
    with pytest.raises(UserError, match=r"--workdir='.*run-\\udcff' is not UTF-8"):
        locks.require_no_writer(epath.Path(tmp_path / name))


def test_a_folder_can_be_locked_again(tmp_path):
    folder = epath.Path(tmp_path / "run")
    for _ in range(2):
        with locks.one_writer(folder), pytest.raises(UserError, match="is in use"):
            locks.one_writer(folder).__enter__()


def test_leases(tmp_path, monkeypatch):
    """As in a bucket: a lease counts until it was not renewed for a while."""
    monkeypatch.setattr(locks, "RENEWED_AFTER", 0.05)
    monkeypatch.setattr(locks, "_SETTLED_AFTER", 0.01)
    path = epath.Path(tmp_path / locks.FILE)
    with locks._lease(path):
        first = json.loads(path.read_text())["renewed"]
        with pytest.raises(UserError, match=r"is in use: process \d+ .*5 minutes after its last"):
            locks._lease(path).__enter__()
        deadline = time.monotonic() + 10
        while json.loads(path.read_text() or "{}").get("renewed", first) == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not path.exists()
    path.write_text(json.dumps({"host": "h", "pid": 1, "since": "s", "renewed": time.time() - 400}))
    with locks._lease(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    path.write_text("{")  # cut
    with locks._lease(path):
        pass


def test_of_two_leases_at_one_moment_one_counts(tmp_path, monkeypatch):
    path = epath.Path(tmp_path / locks.FILE)
    other = {"host": "h", "pid": 7, "since": "s", "token": "other", "renewed": time.time()}
    monkeypatch.setattr(locks.time, "sleep", lambda _: path.write_text(json.dumps(other)))
    with pytest.raises(UserError, match="process 7 on h"):
        locks._lease(path).__enter__()
    assert json.loads(path.read_text()) == other
