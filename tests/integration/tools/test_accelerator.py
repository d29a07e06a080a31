"""The check of an accelerator, rehearsed on virtual processors where there is no TensorFlow."""

import json
import os
import sys

from tests.support.runs import run_command

WITHOUT_TENSORFLOW = """
import runpy, sys
sys.modules["tensorflow"] = None  # importing it is an error
sys.argv = ["accelerator", *sys.argv[1:]]
runpy.run_module("benchmarks.accelerator", run_name="__main__", alter_sys=True)
"""


def test_a_rehearsal(tmp_path):
    output = tmp_path / "found.json"
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    finished = run_command(
        [
            sys.executable, "-c", WITHOUT_TENSORFLOW, "--small", f"--output={output}",
            "--only=golden,devices,steps,twin,ranking",
        ],
        env=os.environ | {"XLA_FLAGS": flags},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    found = json.loads(output.read_text())
    assert [row["within bounds"] for row in found["golden"]] == [True, True]
    assert [row["within bounds"] for row in found["devices"]] == [True, True]
    assert all(row["seconds"] > 0 for row in found["steps"] if row["case"] == "small")
    assert found["twin"] == [{"note": "left out: --peers_python names no interpreter"}]
    assert found["ranking"][-1]["recall"] > 0.9
