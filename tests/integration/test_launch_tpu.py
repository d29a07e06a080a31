"""launch_tpu.sh against a stand-in for gcloud that records calls and fails on demand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch_tpu.sh"
LOCATION = ("--quiet", "--project=p", "--zone=z")

STAND_IN = """#!{python}
import json, pathlib, shutil, subprocess, sys
folder = pathlib.Path({folder!r})
world = json.loads((folder / "world.json").read_text())
arguments = sys.argv[1:]
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
verb = next(v for v in ("create", "describe", "delete", "ssh", "scp", "rsync") if v in arguments)
failures = world["failures"].get(verb, [])
answer = 0
if world.get("warning"):
    print(world["warning"], file=sys.stderr)
if failures:
    message = failures.pop(0)
    if message:
        print(message, file=sys.stderr)
        answer = 1
if verb == "describe" and not answer:
    states = world["states"]
    if not states[0]:
        print("ERROR: NOT_FOUND: Resource was not found", file=sys.stderr)
        answer = 1
    elif "labels" in arguments[-1]:
        print(world["owner"])
    else:
        print(states.pop(0) if len(states) > 1 else states[0])
elif verb == "create" and not answer:
    world["states"] = world["after_create"]
elif verb == "delete" and not answer:
    world["states"] = [""]
elif verb == "ssh" and not answer and world.get("worker"):
    command = arguments[-1].removeprefix("--command=")
    subprocess.run(["bash", "-c", command], cwd=world["worker"], check=True)
elif verb == "scp" and not answer and world.get("worker"):
    shutil.copy(pathlib.Path(world["worker"], arguments[4].partition(":")[2]), arguments[5])
(folder / "world.json").write_text(json.dumps(world))
sys.exit(answer)
"""


class Cloud:
    """Google's side of the conversation."""

    def __init__(self, folder, **world):
        self.folder = folder
        (folder / "bin").mkdir()
        stand_in = folder / "bin" / "gcloud"
        stand_in.write_text(STAND_IN.format(python=sys.executable, folder=str(folder)))
        stand_in.chmod(0o755)
        defaults = {
            "states": [""],
            "after_create": ["ACTIVE"],
            "owner": "tssr-jax",
            "failures": {},
        }
        (folder / "world.json").write_text(json.dumps(defaults | world))

    def launch(self, command, *flags, script=SCRIPT, **environment):
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        settings = {"TPU_PROJECT": "p", "TPU_ZONE": "z", "TPU_POLL": "0", "TPU_BACKOFF": "0"}
        return subprocess.run(
            [script, command, *flags],
            env={"PATH": path, "HOME": str(self.folder)} | settings | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def calls(self, verb=None):
        path = self.folder / "calls"
        calls = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )
        return [call for call in calls if verb is None or verb in call]


@pytest.fixture(name="cloud")
def fixture_cloud(tmp_path):
    return lambda **world: Cloud(tmp_path, **world)


def test_create_asks_for_a_labelled_spot_resource_and_waits(cloud):
    google = cloud(after_create=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    result = google.launch("create", "--name=mine", "--type=v4-8", "--runtime=tpu-ubuntu")
    assert result.returncode == 0, result.stderr
    assert google.calls("create") == [
        [
            "compute", "tpus", "queued-resources", "create", "mine", *LOCATION,
            "--node-id=mine", "--accelerator-type=v4-8", "--runtime-version=tpu-ubuntu",
            "--labels=managed_by=tssr-jax", "--async", "--spot",
        ]
    ]  # fmt: skip
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == [
        "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"
    ]  # fmt: skip


def test_create_on_demand(cloud):
    google = cloud()
    assert google.launch("create", TPU_TIER="on-demand").returncode == 0
    assert "--spot" not in google.calls("create")[0]


def test_create_twice_asks_once(cloud):
    google = cloud()
    assert google.launch("create").returncode == google.launch("create").returncode == 0
    assert len(google.calls("create")) == 1


def test_quota_is_explained(cloud):
    google = cloud(failures={"create": ["RESOURCE_EXHAUSTED: Quota limit TPUV5s exceeded"]})
    result = google.launch("create")
    assert result.returncode == 1
    assert "Quota limit TPUV5s exceeded" in result.stderr  # gcloud's own words
    assert "ask for more of v5litepod-8 in z" in result.stderr
    assert len(google.calls("create")) == 1


def test_a_request_that_fails_while_waiting_is_an_error(cloud):
    result = cloud(after_create=["PROVISIONING", "FAILED"]).launch("create")
    assert result.returncode == 1 and "is FAILED" in result.stderr


def test_setup_copies_to_all_workers_and_installs_the_tested_versions(cloud):
    google = cloud(states=["ACTIVE"])
    assert google.launch("setup").returncode == 0
    (copy,), (install,) = google.calls("scp"), google.calls("ssh")
    assert "--worker=all" in copy and copy[5] == "tssr:tssr_jax.tar.gz"
    assert not Path(copy[4]).exists()  # nothing is left in /tmp
    assert "--worker=all" in install
    assert "--constraint constraints.txt" in install[-1] and "jax[tpu]" in install[-1]
    assert "uv venv --quiet --seed" in install[-1]  # packages with data are fetched by its pip


def run_on_this_machine(folder, command):
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_run_starts_training_once_in_the_background(cloud, tmp_path):
    google = cloud(states=["ACTIVE"])
    flags = ["--workdir=gs://b/run 1", "--config=configs/csv.py:x", "--data=gs://b/raw"]
    flags += ["--", "--config.seed=1", "--config.model.streams=('id',)"]
    assert google.launch("run", *flags).returncode == 0
    (call,) = google.calls("ssh")
    assert "--worker=all" in call
    # What the workers would run, with a stand-in for Python that notes its arguments.
    python = tmp_path / "tssr_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\nexec -a tssr_jax.main sleep 60\n')
    python.chmod(0o755)
    remote = call[-1].removeprefix("--command=")
    try:
        assert run_on_this_machine(tmp_path, remote) == ""
        assert run_on_this_machine(tmp_path, remote) == "training runs already\n"
        log = tmp_path / "tssr_jax" / "run.log"
        run_on_this_machine(tmp_path, f"until grep -q streams {log}; do sleep 0.1; done")
        assert log.read_text().splitlines() == [
            "-m",
            "tssr_jax.main",
            "--multihost",
            "--config=configs/csv.py:x",
            "--workdir=gs://b/run 1",
            "--config.data.raw_dir=gs://b/raw",
            "--config.seed=1",
            "--config.model.streams=('id',)",
        ]
    finally:
        run_on_this_machine(tmp_path, "kill $(cat tssr_jax/pid)")


def test_a_transient_failure_is_tried_again(cloud):
    google = cloud(states=["ACTIVE"], failures={"ssh": ["Connection reset"] * 2})
    result = google.launch("run", "--workdir=gs://b/r")
    assert result.returncode == 0
    assert len(google.calls("ssh")) == 3
    assert "attempt 1 of 5" in result.stderr and "attempt 2 of 5" in result.stderr


def test_a_lasting_failure_ends_in_a_clear_error(cloud):
    google = cloud(states=["ACTIVE"], failures={"scp": ["Permission denied"] * 9})
    result = google.launch("setup", "--attempts=3")
    assert result.returncode == 1 and len(google.calls("scp")) == 3
    assert "copying failed 3 times" in result.stderr and "Permission denied" in result.stderr


def test_the_pause_between_attempts_doubles(cloud):
    google = cloud(states=["ACTIVE"], failures={"ssh": ["Connection reset"] * 2})
    result = google.launch("run", "--workdir=gs://b/r", TPU_BACKOFF="1")
    assert "again in 1 s" in result.stderr and "again in 2 s" in result.stderr


def test_a_preemption_is_told_from_a_failure(cloud):
    google = cloud(states=["SUSPENDED"], failures={"ssh": ["Connection refused"]})
    result = google.launch("logs")
    assert result.returncode == 1 and len(google.calls("ssh")) == 1
    assert "tssr was preempted" in result.stderr and "launch_tpu.sh resume" in result.stderr


def test_resume_replaces_what_was_preempted_and_runs_again(cloud):
    google = cloud(states=["SUSPENDED"])
    result = google.launch("resume", "--workdir=gs://b/r")
    assert result.returncode == 0, result.stderr
    verbs = [call[3] for call in google.calls() if call[3] != "describe"]
    assert verbs == ["delete", "create", "scp", "ssh", "ssh"]
    assert "--workdir=gs://b/r" in google.calls("ssh")[-1][-1]


def test_resume_needs_results_that_outlive_the_tpu(cloud):
    google = cloud(states=["SUSPENDED"])
    result = google.launch("resume", "--workdir=runs/local")
    assert result.returncode == 1 and "gs://" in result.stderr and not google.calls()


@pytest.mark.parametrize("command", ["create", "delete", "resume"])
def test_what_this_script_did_not_create_is_left_alone(cloud, command):
    google = cloud(states=["SUSPENDED"], owner="")
    result = google.launch(command, "--workdir=gs://b/r")
    assert result.returncode == 1 and "was not created by this script" in result.stderr
    assert {call[3] for call in google.calls()} == {"describe"}


def test_delete_twice_deletes_once(cloud):
    google = cloud(states=["ACTIVE"])
    first, second = google.launch("delete"), google.launch("delete")
    assert first.returncode == second.returncode == 0
    assert len(google.calls("delete")) == 1 and "nothing to delete" in second.stderr


@pytest.mark.parametrize("command", ["create", "delete", "status", "resume"])
@pytest.mark.parametrize(
    "message", ["Reauthentication required", "NOT_FOUND: Project 'p' was not found."]
)
def test_a_look_that_fails_is_not_taken_for_absence(cloud, command, message):
    google = cloud(states=["ACTIVE"], failures={"describe": [message] * 9})
    result = google.launch(command, "--attempts=2", "--workdir=gs://b/r")
    assert result.returncode == 1 and f"can't look at tssr. gcloud says: {message}" in result.stderr
    assert {call[3] for call in google.calls()} == {"describe"}


def test_a_look_that_fails_once_is_tried_again(cloud):
    google = cloud(states=["ACTIVE"], failures={"describe": ["Connection reset"]})
    assert google.launch("status").stdout.startswith("tssr: ACTIVE\n")
    google = json.loads((google.folder / "world.json").read_text())
    assert google["failures"] == {"describe": []}


def test_warnings_are_not_taken_for_the_answer(cloud):
    google = cloud(states=["ACTIVE"], warning="WARNING: a new version is available")
    assert google.launch("create").returncode == 0
    assert google.launch("delete").returncode == 0 and len(google.calls("delete")) == 1


def test_a_connection_that_drops_is_tried_again_command_and_look(cloud):
    failures = {"ssh": ["Connection reset"], "describe": ["Connection reset"]}
    google = cloud(states=["ACTIVE"], failures=failures)
    assert google.launch("run", "--workdir=gs://b/r").returncode == 0
    assert len(google.calls("ssh")) == 2 and len(google.calls("describe")) == 2


def test_fetch_copies_the_workdir(cloud, tmp_path):
    google = cloud(states=["ACTIVE"])
    assert google.launch("fetch", "--workdir=gs://b/r", "--to=here").returncode == 0
    assert google.calls("rsync") == [["storage", "rsync", "--recursive", "gs://b/r", "here"]]
    assert (tmp_path / "here").is_dir()


def test_fetch_is_tried_again(cloud):
    google = cloud(failures={"rsync": ["Connection reset"] * 2})
    assert google.launch("fetch", "--workdir=gs://b/r").returncode == 0
    assert len(google.calls("rsync")) == 3


@pytest.mark.parametrize("name", ["x", "it's $HOME; a `run`"])
def test_fetch_from_the_tpu_itself(cloud, tmp_path, name):
    worker = tmp_path / "worker"
    (worker / "tssr_jax" / "runs" / name).mkdir(parents=True)
    (worker / "tssr_jax" / "runs" / name / "config.json").write_text("{}")
    (worker / "far").mkdir()
    (worker / "far" / "log").write_text("a log")
    (worker / "tssr_jax" / "runs" / name / "log").symlink_to(worker / "far" / "log")
    google = cloud(states=["ACTIVE"], worker=str(worker))
    result = google.launch("fetch", f"--workdir=runs/{name}", "--to=my results")
    assert result.returncode == 0, result.stderr
    files = {path.name: path.read_text() for path in (tmp_path / "my results").iterdir()}
    assert files == {"config.json": "{}", "log": "a log"}


def test_a_process_of_another_program_is_not_taken_for_training(cloud, tmp_path):
    worker = tmp_path / "worker"
    (worker / "tssr_jax").mkdir(parents=True)
    (worker / "tssr_jax" / "pid").write_text(str(os.getpid()))  # pytest's
    google = cloud(states=["ACTIVE"], worker=str(worker))
    assert google.launch("status").stdout.splitlines() == ["tssr: ACTIVE", "nothing runs"]


def test_setup_packs_the_folder_behind_a_link(cloud, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "launch_tpu.sh").write_bytes(SCRIPT.read_bytes())
    (folder / "launch_tpu.sh").chmod(0o755)
    link = tmp_path / "elsewhere"
    link.symlink_to(folder / "launch_tpu.sh")
    google = cloud()
    result = google.launch("setup", "--dry-run", script=link)
    assert f" -C {folder} " in result.stdout


def test_resume_dry_run_prints_what_replaces_a_preempted_tpu(cloud):
    result = cloud().launch("resume", "--dry-run", "--workdir=gs://b/r")
    verbs = [line.split()[4] for line in result.stdout.splitlines() if line.startswith("gcloud")]
    assert verbs == ["delete", "create", "scp", "ssh", "ssh"]
    assert "only if tssr has failed or was preempted" in result.stderr


def test_status(cloud):
    google = cloud(states=["PROVISIONING"])
    assert google.launch("status").stdout == "tssr: PROVISIONING\n"


@pytest.mark.parametrize(
    "command", ["create", "setup", "run", "logs", "status", "resume", "fetch", "delete"]
)
def test_dry_run_prints_commands_and_runs_none(cloud, command):
    google = cloud(states=["ACTIVE"])
    result = google.launch(command, "--dry-run", "--workdir=gs://b/r")
    assert result.returncode == 0 and "gcloud " in result.stdout
    assert not google.calls() and not (google.folder / "runs").exists()


def test_dry_run_prints_what_is_run(cloud):
    google = cloud(states=["ACTIVE"])
    printed = google.launch("run", "--dry-run", "--workdir=gs://b/r").stdout
    google.launch("run", "--workdir=gs://b/r")
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {printed}"], capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]
    assert words == ["gcloud", *google.calls("ssh")[0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "unknown command fly"),
        (["create", "--colour=red"], "unknown option --colour=red"),
        (["create", "--tier=cheap"], "spot or on-demand"),
        (["create", "--attempts=0"], "--attempts is '0'"),
        (["run"], "run needs --workdir"),
    ],
)
def test_wrong_usage_is_one_clear_line(cloud, arguments, message):
    result = cloud(states=["ACTIVE"]).launch(*arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1


def test_help_names_every_command_and_option(cloud):
    text = cloud().launch("help").stdout
    source = SCRIPT.read_text()
    assert all(f"TPU_{name}" in text for name in ("NAME", "TIER", "WORKDIR", "POLL"))
    options = [line.split(")")[0].strip() for line in source.splitlines() if "=*) " in line]
    assert len(options) == 14 and all(option.rstrip("*") in text for option in options)
