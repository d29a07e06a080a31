"""Trials side by side: whose cores, what a stop does, what is told."""

import os
import threading
import time

import pytest

from tests.support.raw_data import tiny_config
from tssr_jax.errors import UserError
from tssr_jax.studies.slots import News, Slots, run_trial
from tssr_jax.studies.trial import Trial

CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores that processes can be bound to")
def test_slots_share_the_cores():
    both = threading.Barrier(2, timeout=60)

    def own_cores():
        both.wait()  # so that each thread gets one of the two
        return os.sched_getaffinity(0)

    with Slots(2) as slots:
        first, second = [slots.submit(own_cores) for _ in range(2)]
    assert first.result() | second.result() == CORES
    assert not first.result() & second.result()
    assert os.sched_getaffinity(0) == CORES


def test_a_single_slot_has_all_cores_and_goes_in_order():
    order = []
    with Slots(1) as slots:
        cores = slots.submit(lambda: os.sched_getaffinity(0)) if CORES else None
        futures = [slots.submit(order.append, i) for i in range(5)]
    assert order == [0, 1, 2, 3, 4] and all(future.done() for future in futures)
    assert cores is None or cores.result() == CORES


def test_more_slots_than_cores_are_refused():
    with pytest.raises(UserError, match=r"--trials_at_once=100000, but this process may use"):
        Slots(100_000)


def test_an_exception_stops_what_runs_and_what_waits():
    began = threading.Event()
    with pytest.raises(KeyboardInterrupt), Slots(1) as slots:

        def until_stopped():
            began.set()
            return slots.stopped.wait(60)

        first, second = slots.submit(until_stopped), slots.submit(print)
        began.wait(60)
        raise KeyboardInterrupt
    assert first.result() is True and second.cancelled()


def test_a_trial_is_stopped_with_its_process(tmp_path):
    trial = Trial("", {}, tiny_config(tmp_path), tmp_path / "trial")
    trial.prepare()
    words = []
    begin = time.monotonic()
    with Slots(1) as slots:
        slots.stopped.set()
        assert run_trial(trial, 0.0, words.append, slots) is False
    assert time.monotonic() - begin < 60
    assert words == [""]


def test_news_of_trials_side_by_side():
    lines = []
    news = News(lines.append)
    a, b = news.of("a"), news.of("b")
    for tell, word in ((a, "epoch 1"), (b, "preparing"), (a, "epoch 2"), (a, ""), (a, ""), (b, "")):
        tell(word)
    assert lines == [
        "a: epoch 1", "a: epoch 1; b: preparing", "a: epoch 2; b: preparing", "b: preparing",
        "b: preparing", "",
    ]  # fmt: skip
