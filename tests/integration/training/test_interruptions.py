"""What stops a run from outside: kill, SIGTERM, damaged files, a disk that takes no more."""

import os
import signal
import subprocess
import time

import pytest

from tests.support.raw_data import tiny_config
from tests.support.runs import ROOT, assert_same_run, command, metrics_of, newest_step, run_command
from tssr_jax.training.loop import train

# A compiled program that is half written when a process is killed, or its disk is full, is no use
# to the others and stays in the way of a whole one: these processes write none.
ALONE = dict(os.environ, JAX_ENABLE_COMPILATION_CACHE="false")


@pytest.fixture(name="config")
def fixture_config(tmp_path):
    return tiny_config(tmp_path)


def start_silently(config, workdir):
    return subprocess.Popen(
        command(config, workdir),
        cwd=ROOT,
        env=ALONE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_killed_at_any_step_and_resumed_it_ends_the_same(config, tmp_path, capsys):
    """Checkpoints within the epoch and within a log window; kill -9 at whatever step it is.

    Until then another training of the same folder is refused.
    """
    config.train.update(num_epochs=400, checkpoint_every_steps=2, log_every_steps=5)
    config.train.time_noise = (0.0, 1e6)
    config.train.early_stopping_patience = 0
    config.optimizer.ema_decay = 0.9
    killed = tmp_path / "killed"
    process = start_silently(config, killed)
    while process.poll() is None and newest_step(killed) < 5:
        pass
    second = run_command(command(config, killed))
    assert second.returncode == 1 and f"is in use: process {process.pid} on" in second.stderr
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "killed too late: it had ended by itself"
    step = newest_step(killed)
    config.train.num_epochs = -(-step // 3) + 1
    train(config, killed)
    assert f"Resuming at step {step}" in capsys.readouterr().out
    train(config, tmp_path / "whole")
    assert_same_run(config, tmp_path / "whole", killed)


def saves_in_progress(workdir):
    folder = workdir / "checkpoints"
    return [p for p in folder.iterdir() if "tmp" in p.name] if folder.is_dir() else []


def test_killed_during_a_save_the_last_whole_checkpoint_is_found(config, tmp_path, capsys):
    config.train.update(num_epochs=400, checkpoint_every_steps=1)
    config.train.early_stopping_patience = 0
    killed = tmp_path / "killed"
    process = start_silently(config, killed)
    while process.poll() is None and (newest_step(killed) < 2 or not saves_in_progress(killed)):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert saves_in_progress(killed), "killed too late"
    step = newest_step(killed)
    config.train.num_epochs = -(-step // 3) + 1
    train(config, killed)
    assert f"Resuming at step {step}" in capsys.readouterr().out
    assert not saves_in_progress(killed)
    train(config, tmp_path / "whole")
    assert_same_run(config, tmp_path / "whole", killed)


def test_sigterm_finishes_the_step_saves_and_exits_0(config, tmp_path, capsys):
    """Checkpoints come after validations only, but the interrupted epoch is not lost."""
    config.train.update(num_epochs=400, epochs_per_evaluation=400, log_every_steps=5)
    config.train.early_stopping_patience = 0
    stopped = tmp_path / "stopped"
    process = subprocess.Popen(
        command(config, stopped),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and len(metrics_of(stopped)) < 2:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    step = newest_step(stopped)
    assert step >= 10 and f"Stopped by SIGTERM after step {step}, which is saved" in output
    assert not (stopped / "test_metrics.json").exists()
    # Another number of epochs, so that the test does not take long.
    config.train.num_epochs = -(-step // 3) + 1
    train(config, stopped)
    assert f"Resuming at step {step}" in capsys.readouterr().out
    train(config, tmp_path / "whole")
    assert_same_run(config, tmp_path / "whole", stopped)


def cut(content):
    return content[: len(content) // 2]


def flip(content):
    """One bit in every 64 bytes: one in the whole file may lie where nobody reads."""
    flipped = bytearray(content)
    for place in range(32, len(flipped), 64):
        flipped[place] ^= 4
    return bytes(flipped)


@pytest.mark.parametrize("damage", [pytest.param(cut, marks=pytest.mark.slow), flip])
def test_a_damaged_newest_checkpoint_is_reported_and_the_run_goes_on_from_the_one_before(
    config, tmp_path, damage, capsys
):
    config.train.num_epochs = 2
    train(config, tmp_path / "damaged")
    folder = tmp_path / "damaged" / "checkpoints" / "6"
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(damage(largest.read_bytes()))
    config.train.num_epochs = 3
    train(config, tmp_path / "damaged")
    output = capsys.readouterr().out
    assert "checkpoints/6 is damaged" in "".join(output.split("\n"))
    assert "Resuming at step 3" in output
    train(config, tmp_path / "whole")
    assert_same_run(config, tmp_path / "whole", tmp_path / "damaged")


def test_a_disk_that_takes_no_more_stops_the_run_and_leaves_the_checkpoint_before(
    config, tmp_path, capsys
):
    """A limit on the size of files stands for the full disk: writes fail in the same place."""
    workdir = tmp_path / "run"
    config.model.d_model = 64
    config.train.num_epochs = 1
    train(config, workdir)
    config.train.num_epochs = 3
    limited = ["bash", "-c", 'ulimit -f 64 && exec "$@"', "-", *command(config, workdir)]
    stopped = run_command(limited, env=ALONE)
    assert stopped.returncode == 1
    # Orbax's threads print stacks of their own before and after, and which of several failed
    # writes reaches the caller first is up to them.
    (message,) = [line for line in stopped.stderr.splitlines() if line.startswith("Error: ")]
    assert message.startswith("Error: A checkpoint could not be written to"), message
    assert "File too large" in stopped.stderr, stopped.stderr
    assert newest_step(workdir) == 3
    train(config, workdir)
    assert "Resuming at step 3" in capsys.readouterr().out
    train(config, tmp_path / "whole")
    assert_same_run(config, tmp_path / "whole", workdir)
