"""When training is asked to stop."""

import os
import signal
import time

import pytest

from tssr_jax.runtime import StopRequest


class OtherError(Exception):
    pass


@pytest.fixture(name="others", autouse=True)
def fixture_others():
    """What takes a SIGTERM outside."""

    def terminate(*_):
        raise OtherError

    before = {n: signal.signal(n, terminate) for n in (signal.SIGTERM, signal.SIGHUP)}
    yield terminate
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_ignored_hangup_stays_ignored():
    """As nohup leaves it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.1)
        assert not stop.requested


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_noted_inside_only(others, number):
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        time.sleep(0.1)
        assert stop.requested and stop.terminated and not stop.late
    assert signal.getsignal(number) is others
    with pytest.raises(OtherError):
        os.kill(os.getpid(), number)
        time.sleep(0.1)


def test_a_limit_counts_from_the_beginning_of_the_block():
    """Data that takes long to prepare takes nothing of it; afterwards nothing is left of it."""
    stop = StopRequest(seconds=0.3)
    time.sleep(0.4)
    with stop:
        assert not stop.requested
        time.sleep(0.4)
        assert stop.requested and stop.late and not stop.terminated
    with StopRequest(seconds=1e6) as stop:
        assert not stop.requested
