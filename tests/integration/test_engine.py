"""Work in blocks on Ray, on two nodes of one machine: results are those of this process."""

import functools
import os
import time
from collections import Counter, deque
from pathlib import Path

import pytest

from tests.support.clusters import cluster_of_two, two_nodes
from tssr_jax import engine
from tssr_jax.engine import ThisProcess, open_engine
from tssr_jax.errors import UserError

pytest.importorskip("ray")


class Times:
    """Multiplies, when two workers are there; tells its process, and that of its node."""

    def __init__(self, factor, folder):
        self._factor, self._folder = factor, Path(folder)
        (self._folder / f"worker-{os.getpid()}").write_text("")

    def __call__(self, block):
        end = time.monotonic() + 60
        while len(list(self._folder.glob("worker-*"))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.05)
        return self._factor * block, os.getpid(), os.getppid()


class DiesOnce:
    """Kills its process at one block, the first time."""

    def __init__(self, folder):
        self._mark = Path(folder) / "died"

    def __call__(self, block):
        if block == 3 and not self._mark.exists():
            self._mark.write_text("")
            os._exit(1)
        return block + 1


class Dies:
    def __call__(self, block):
        os._exit(1)


class Refuses:
    def __call__(self, block):
        if block == 2:
            raise UserError("block 2 is not to be had")
        return block


def test_this_process_makes_one_worker_when_it_is_needed():
    made = []

    def make():
        made.append(1)
        return lambda block: block * block

    assert list(ThisProcess().map(make, [])) == [] and not made
    assert list(ThisProcess().map(make, [1, 2, 3])) == [(0, 1), (1, 4), (2, 9)]
    assert made == [1]


def test_blocks_on_two_nodes(tmp_path):
    with two_nodes() as place, open_engine(place) as ray_engine:
        found = dict(ray_engine.map(functools.partial(Times, 3, str(tmp_path)), range(20)))
        assert {number: value for number, (value, *_) in found.items()} == {
            number: 3 * number for number in range(20)
        }
        workers = {pid for _, pid, _ in found.values()}
        assert len(workers) == 2 and os.getpid() not in workers
        with pytest.raises(UserError, match=r"^block 2 is not to be had$"):
            dict(ray_engine.map(Refuses, range(5)))
        assert dict(ray_engine.map(Refuses, [])) == {}


def test_a_worker_that_dies_is_replaced(tmp_path):
    with two_nodes() as place, open_engine(place) as ray_engine:
        found = dict(ray_engine.map(functools.partial(DiesOnce, str(tmp_path)), range(8)))
    assert (tmp_path / "died").exists()
    assert found == {number: number + 1 for number in range(8)}


def test_workers_that_always_die_end_the_command():
    with (
        two_nodes() as place,
        open_engine(place) as ray_engine,
        pytest.raises(UserError, match=r"^Workers were lost again and again \("),
    ):
        dict(ray_engine.map(Dies, range(3)))


def test_a_node_that_is_lost(tmp_path):
    """Its blocks are computed by the node that is left, where there is no room for a new worker."""
    with cluster_of_two() as (place, kill_second), open_engine(place) as ray_engine:
        found, nodes = {}, set()
        make = functools.partial(Times, 1, str(tmp_path))
        for number, (value, _, node) in ray_engine.map(make, range(60)):
            found[number] = value
            nodes.add(node)
            if len(found) == 20:
                assert len(nodes) == 2
                kill_second()
    assert found == {number: number for number in range(60)}


def test_a_result_of_a_worker_that_was_lost_since_counts(monkeypatch):
    """The worker gets no further block. (Ray is played: two results, of which one is lost.)"""

    class Played:
        put, remote = staticmethod(lambda value: value), None

        class exceptions:  # noqa: N801
            RayError = type("RayError", (Exception,), {})
            RayTaskError = type("RayTaskError", (RayError,), {})
            RayActorError = type("RayActorError", (RayError,), {})
            WorkerCrashedError = OutOfMemoryError = NodeDiedError = RayActorError
            ObjectLostError = RayActorError

        @staticmethod
        def wait(asked, timeout):
            return [ref for ref in ("lost", "done") if ref in asked], []

        @staticmethod
        def get(ref):
            if ref == "lost":
                raise Played.exceptions.RayActorError("dead")
            return "result"

        @staticmethod
        def kill(worker):
            assert worker == "worker"

    crew = engine._Crew.__new__(engine._Crew)
    crew._ray, crew._workers, crew._starting = Played, {0: "worker"}, {}
    crew._lost_at_start, crew._losses = 0, Counter()
    crew.free, crew.busy = deque(), {"lost": (0, (5, "b")), "done": (0, (4, "a"))}
    monkeypatch.setattr(crew, "_start", lambda: None)
    lost, done = crew.wait()
    assert lost.blocks == [(5, "b")] and done == (4, "result")
    assert not crew.free and not crew.busy and not crew._workers


def test_other_versions_are_refused(monkeypatch):
    own = engine._versions() | {"jax": "0.1"}
    with two_nodes() as place, open_engine(place) as ray_engine:
        monkeypatch.setattr(engine, "_versions", lambda: own)
        with pytest.raises(UserError, match=r"has jax [\d.]+ in place of 0\.1: install the same"):
            dict(ray_engine.map(Refuses, range(2)))


def test_no_cluster_and_no_ray(monkeypatch):
    with (
        pytest.raises(UserError, match=r"--ray_address=127\.0\.0\.1:1: there is no Ray cluster"),
        open_engine(engine.Place("ray", "127.0.0.1:1")),
    ):
        pass
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(UserError, match=r"--engine=ray needs Ray: pip install 'tssr-jax\[ray\]'"),
        open_engine(engine.Place("ray")),
    ):
        pass
