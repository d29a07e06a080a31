"""Several processes train as one: the same numbers, one set of files, one decision to stop."""

import json
import os
import re
import signal
import socket
import subprocess
import time

import numpy as np
import pytest

from tests.support.raw_data import tiny_config
from tests.support.runs import ROOT, command, metrics_of, newest_step
from tssr_jax.training.loop import train


@pytest.fixture(name="config")
def fixture_config(tmp_path):
    config = tiny_config(tmp_path)
    config.train.num_epochs = 3
    config.evaluate.list_length = 10
    return config


def start_processes(config, workdir, number, *options, of_last=()):
    """As many processes with two devices each; their order of arrival is not fixed.

    The last one has options of its own.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    environment = dict(os.environ, XLA_FLAGS=flags)
    return [
        subprocess.Popen(
            command(
                config,
                workdir,
                f"--coordinator=127.0.0.1:{port}",
                f"--num_processes={number}",
                f"--process_id={i}",
                "--config.num_devices=0",
                *options,
                *(of_last if i == number - 1 else ()),
            ),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(number)
    ]


def outputs_of(processes):
    """What each printed, once all have ended well."""
    outputs = []
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        outputs.append(output)
    return outputs


def losses_of(workdir):
    return [r["train/total"] for r in metrics_of(workdir) if "train/total" in r]


def assert_same_metrics(workdir, alone):
    """Ranks and lists are the same; how alike vectors are, up to the rounding of these."""
    found = json.loads((workdir / "test_metrics.json").read_text())
    rounded = {name for name in found if name.startswith("diversity_id")}
    assert rounded
    assert {name: found[name] for name in rounded} == pytest.approx(
        {name: alone[name] for name in rounded}, rel=1e-5
    )
    exact = found.keys() - rounded
    assert {name: found[name] for name in exact} == {name: alone[name] for name in exact}


def test_another_setting_in_one_process_is_told(config, tmp_path):
    processes = start_processes(
        config, tmp_path / "run", 2, of_last=("--config.optimizer.learning_rate=0.5",)
    )
    for i, process in enumerate(processes):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1, errors
        told = "process 1 has another optimizer.learning_rate than process 0"
        assert told in " ".join(errors.split()), errors
        assert f"in process {i}, it is {(0.01, 0.5)[i]}" in " ".join(errors.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("way", "victim", "reason"),
    [
        (signal.SIGKILL, 1, "another one has ended|no sign of life"),
        pytest.param(
            *(signal.SIGSTOP, 1, "process 1 has given no sign of life for [5-7] seconds"),
            marks=pytest.mark.slow,
        ),
        (signal.SIGSTOP, 0, "process 0 has given no sign of life for [5-7] seconds"),
    ],
)
def test_a_process_that_is_lost_ends_the_others_with_one_paragraph(
    config, tmp_path, way, victim, reason
):
    config.train.update(num_epochs=1_000_000, epochs_per_evaluation=1_000_000)
    processes = start_processes(config, tmp_path / "run", 2, "--peer_timeout=6")
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 240
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    processes[victim].send_signal(way)
    other = 1 - victim
    try:
        _, errors = processes[other].communicate(timeout=30)
    finally:
        processes[victim].kill()
        processes[victim].communicate()
    assert processes[other].returncode == 1, errors
    assert f"Process {other} of 2 can't go on: " in errors and re.search(reason, errors)
    assert "Fatal" not in errors and "Traceback" not in errors and "@  " not in errors


@pytest.mark.parametrize("there", [0, 1])
def test_a_process_that_never_comes_is_told(config, tmp_path, there):
    processes = start_processes(config, tmp_path / "run", 2, "--peer_timeout=5")
    processes[1 - there].kill()
    _, errors = processes[there].communicate(timeout=60)
    processes[1 - there].communicate()
    assert processes[there].returncode == 1, errors
    assert "Not all processes have come within 5 seconds" in errors
    assert "Fatal" not in errors and "Traceback" not in errors and "@  " not in errors, errors


def test_an_error_of_one_process_is_told_by_all(config, tmp_path):
    away = ("--config.data.raw_dir=/nowhere",)
    processes = start_processes(config, tmp_path / "run", 2, of_last=away)
    told = "'csv': there is no folder /nowhere"
    for process, words in zip(
        processes, (f"process 1 has ended: Source {told}", told), strict=True
    ):
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1, errors
        assert words in " ".join(errors.split()) and "Traceback" not in errors, errors


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_with_a_catalogue_cut_in_two_give_the_numbers_of_one(config, tmp_path, number):
    config.train.time_noise = (0.0, 1e6)
    config.num_devices = 2 * number
    alone = train(config, tmp_path / "alone")
    flags = ("--config.parallel=shard_map", "--config.model_devices=2")
    outputs = outputs_of(start_processes(config, tmp_path / "many", number, *flags))
    assert_same_metrics(tmp_path / "many", alone)
    np.testing.assert_allclose(
        losses_of(tmp_path / "many"), losses_of(tmp_path / "alone"), rtol=1e-4
    )
    # Gloo greets everyone, in pieces.
    ours = ("ndcg@10", "epoch", "Training")
    assert all(word in outputs[0] for word in ours)
    assert not any(word in output for word in ours for output in outputs[1:])


def test_checkpoints_move_from_eight_devices_to_one_to_two_processes(config, tmp_path):
    config.num_devices = 1
    alone = train(config, tmp_path / "alone")
    for epochs, devices in ((1, 8), (2, 1)):
        config.train.num_epochs, config.num_devices = epochs, devices
        train(config, tmp_path / "moved")
    config.train.num_epochs = 3
    first, _ = outputs_of(start_processes(config, tmp_path / "moved", 2))
    assert "Resuming at step 6" in first
    assert_same_metrics(tmp_path / "moved", alone)
    np.testing.assert_allclose(
        losses_of(tmp_path / "moved"), losses_of(tmp_path / "alone"), rtol=1e-4
    )


def test_damage_in_the_part_of_one_process_makes_all_fall_back(config, tmp_path):
    """Each process writes its own file; the second one's, of the newest checkpoint, is cut."""
    config.train.num_epochs = 2
    cut = "--config.parallel=shard_map", "--config.model_devices=4"
    outputs_of(start_processes(config, tmp_path / "run", 2, *cut))
    newest = newest_step(tmp_path / "run")
    files = (tmp_path / "run" / "checkpoints" / str(newest)).rglob("ocdbt.process_1/d/*")
    for path in files:
        path.write_bytes(bytes(path.stat().st_size))
    config.train.num_epochs = 3
    first, second = outputs_of(start_processes(config, tmp_path / "run", 2, *cut))
    told = " ".join(first.split())
    assert "is damaged: it can't be read" in told and "the one before it is used" in told
    assert f"Resuming at step {newest // 2}" in first and "is damaged" not in second
    config.num_devices, config.train.num_epochs = 1, 3
    train(config, tmp_path / "alone")
    np.testing.assert_allclose(
        losses_of(tmp_path / "run"), losses_of(tmp_path / "alone"), rtol=1e-4
    )


def test_a_sigterm_to_one_process_stops_all_at_the_same_step(config, tmp_path):
    config.train.update(num_epochs=4000, epochs_per_evaluation=4000, log_every_steps=5)
    config.train.early_stopping_patience = 0
    processes = start_processes(config, tmp_path / "run", 2)
    while len(metrics_of(tmp_path / "run")) < 2:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    first, _ = outputs_of(processes)
    step = newest_step(tmp_path / "run")
    assert step >= 10 and f"Stopped by SIGTERM after step {step:,}, which is saved" in first
