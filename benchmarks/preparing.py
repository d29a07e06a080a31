"""Preparing a large dump by one process and by a Ray cluster of two nodes on this machine.

    python -m benchmarks.preparing --folder=/tmp/large --interactions=100000000

Writes the dump first (Parquet, a folder of files), if it is not there. Each way runs in a process
of its own; a table tells its time, the memory of each node (all its processes, at most), and what
Ray spilled to disk. Both results are compared, byte by byte.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from absl import app, flags
from rich.progress import track
from rich.table import Table

from tssr_jax.config import default_config
from tssr_jax.data_pipeline.digests import of_records
from tssr_jax.data_pipeline.prepare import prepare
from tssr_jax.engine import own_errors
from tssr_jax.reporting import make_console
from tssr_jax.tools.sizing import GIB

_FOLDER = flags.DEFINE_string("folder", None, "Of the dump and of what is prepared.", required=True)
_ROWS = flags.DEFINE_integer("interactions", 100_000_000, "Rows.", lower_bound=1)
_FILES = flags.DEFINE_integer("files", 20, "Files of interactions.", lower_bound=1)
_STORE = flags.DEFINE_float("store_gib", 2.0, "Memory of each node's object store.")
_WAY = flags.DEFINE_enum("way", "", ("", "process", "ray"), "For the processes that are measured.")


def write_dump(folder: Path, rows: int, files: int) -> None:
    """Interactions of rows / 25 users with rows / 300 items, uneven, over two years."""
    rng = np.random.default_rng(0)
    users, items = max(3, rows // 25), max(3, rows // 300)
    activity = np.cumsum(rng.lognormal(0.0, 1.0, users))
    popularity = np.cumsum(1.0 / (np.arange(items) + 20.0) ** 0.8)
    (folder / "interactions").mkdir(parents=True)
    for i in track(range(files), "Writing the dump"):
        own = rows * (i + 1) // files - rows * i // files
        drawn = [
            np.searchsorted(chances, rng.uniform(0, chances[-1], own))
            for chances in (activity, popularity)
        ]
        ids = [pl.Series(numbers).cast(pl.String).str.zfill(12) for numbers in drawn]
        pl.DataFrame(
            {
                "user": "user-" + ids[0],
                "item": "item-" + ids[1],
                "timestamp": 1_600_000_000 + rng.integers(0, 63_072_000, own),
            }
        ).write_parquet(folder / "interactions" / f"part-{i:03}.parquet")
    names = pl.Series(np.arange(items)).cast(pl.String).str.zfill(12)
    pl.DataFrame({"item": "item-" + names, "title": "title " + names}).write_parquet(
        folder / "items.parquet"
    )


def resident(root: int) -> int:
    """Bytes of memory of a process and all below it; shared pages count in parts."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    total, left = 0, [root]
    while left:
        own = left.pop()
        left += children.get(own, [])
        try:
            for line in Path(f"/proc/{own}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += 1024 * int(line.split()[1])
        except OSError:
            continue
    return total


def run_way(way: str, folder: Path) -> None:
    """Prepares, and prints the key of the records."""
    config = default_config()
    config.data.update(source="csv", raw_dir=str(folder), cache_dir=str(folder / f"cache-{way}"))
    if way == "process":
        print(of_records(prepare(config.data).folder))
        return
    import ray  # noqa: PLC0415 - an extra
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    store = int(_STORE.value * GIB)
    spill = folder / "spilled"
    spill.mkdir(exist_ok=True)
    node: dict[str, Any] = {
        "num_cpus": 1,
        "object_store_memory": store,
        "object_spilling_directory": str(spill),
    }
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    peaks, most_spilled, ended = [0, 0], [0], threading.Event()
    raylets = [
        int(process.process.pid)
        for own in (cluster.head_node, *cluster.worker_nodes)
        for process in own.all_processes["raylet"]
    ]

    def watch() -> None:
        while not ended.wait(2.0):
            for i, pid in enumerate(raylets):
                peaks[i] = max(peaks[i], resident(pid))
            spilled = sum(p.stat().st_size for p in spill.rglob("*") if p.is_file())
            most_spilled[0] = max(most_spilled[0], spilled)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with own_errors(ray):
            key = of_records(prepare(config.data, ray).folder)
    finally:
        ended.set()
        watcher.join()
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(spill, ignore_errors=True)
    print(*(f"{peak / GIB:.2f}" for peak in peaks), f"{most_spilled[0] / GIB:.2f}", key)


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    del argv
    folder = Path(_FOLDER.value)
    if _WAY.value:
        run_way(_WAY.value, folder)
        return
    if not (folder / "items.parquet").exists():
        write_dump(folder, _ROWS.value, _FILES.value)
    table = Table("", "seconds", "memory, GiB", "spilled, GiB", title=f"{_ROWS.value:,} rows")
    keys = []
    for way in ("process", "ray"):
        shutil.rmtree(folder / f"cache-{way}", ignore_errors=True)
        command = [sys.executable, "-m", "benchmarks.preparing", f"--folder={folder}"]
        with tempfile.TemporaryFile("w+") as output:
            start = time.perf_counter()
            process = subprocess.Popen(
                [*command, f"--way={way}", f"--store_gib={_STORE.value}"], stdout=output
            )
            peak = 0
            while process.poll() is None:
                peak = max(peak, resident(process.pid))
                time.sleep(1.0)
            seconds = time.perf_counter() - start
            output.seek(0)
            *told, key = output.read().split("\n")[-2].split()
        if process.returncode:
            raise SystemExit(process.returncode)
        keys.append(key)
        nodes = told[:2] if told else [f"{peak / GIB:.2f}"]
        table.add_row(way, f"{seconds:,.0f}", ", ".join(nodes), told[2] if told else "")
    console = make_console()
    console.print(table)
    console.print("equal records" if keys[0] == keys[1] else "DIFFERENT records")


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    app.run(main)
