"""The process that runs one contender of one case, controlled by `benchmarks.bench`.

Only the standard library: peers run under an interpreter of their own. A contender's module calls
`serve`; the orchestrator writes "go" for one timed repeat, and the end of its input ends it.
"""

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

Repeat = Callable[[], dict[str, float] | None]


def serve(prepare: Callable[[dict[str, Any]], Repeat], *, one_step: bool = True) -> None:
    """Prepares the case of the command line, runs it once, and then at every "go".

    Args:
      prepare: maps a case, the fields of `cases.Case`, to the function that is run. This function
        may return its own measurements.
      one_step: the function runs one step, one ranking or one product, and a "go" runs it once
        without timing and then several times in a row.
    """
    # Libraries print what they like; answers go where nobody else writes.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    case = json.loads(sys.argv[1])
    repeat = prepare(case)

    def timed(run: Repeat) -> dict[str, float]:
        begin = time.perf_counter()
        own = run() or {}
        return {"seconds": time.perf_counter() - begin} | own

    answer(first=timed(repeat))
    if one_step:
        repeat = _in_a_row(repeat, case["steps"] if case["kind"] in {"train", "epoch"} else 1)
    for _ in sys.stdin:
        answer(
            **timed(repeat), peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )


def _in_a_row(step: Repeat, steps: int) -> Repeat:
    """A repeat of several steps in a row, as in programs; it returns means of all measurements.

    The first is not timed: after a rest, in which the host takes back the pages that the process
    gave up, it takes up to a quarter longer.

    Args:
      step: runs one step, and may return its own measurements.
      steps: number of timed steps.
    """

    def repeat() -> dict[str, float]:
        step()
        begin = time.perf_counter()
        own = [step() or {} for _ in range(steps)]
        seconds = (time.perf_counter() - begin) / steps
        return {"seconds": seconds} | {n: sum(x[n] for x in own) / steps for n in own[0]}

    return repeat


def median_seconds(run: Callable[[], Any], repeats: int = 10, seconds: float = 5.0) -> float:
    """The median of some calls after one that is not timed; fewer where they take long."""
    run()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < repeats and (len(times) < 3 or time.perf_counter() < until):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)
