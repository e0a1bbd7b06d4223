"""A killed run ends like the uninterrupted one; a run that is asked to stop says how to continue."""

import functools
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

import kill
from kvae import main
from kvae.core import program
from kvae.training.parallel.cluster import StopSignal
from kvae.training.workdir.journal import read_metrics
from runs import TINY_ARGUMENTS, run

pytestmark = pytest.mark.usefixtures("default_signal_handlers")


def test_killed_run_ends_like_the_uninterrupted_one(tmp_path, data_dir, monkeypatch):
    command = functools.partial(kill.command, data_dir=data_dir, steps=60, fields=TINY_ARGUMENTS)
    monkeypatch.chdir(kill.ROOT)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")  # as in this process, or sums round differently
    config, workdir = main.parse(command(tmp_path / "uninterrupted")[3:])
    run(config, workdir, devices=8)
    kill.run_with_kills(command(tmp_path / "killed"), tmp_path / "killed", kills=2)
    assert kill.differences(tmp_path / "uninterrupted", tmp_path / "killed") == (0, 0)


@pytest.fixture
def training(tmp_path, data_dir):
    """The command of a long run in tmp_path / "run", and its process, which has begun to train."""
    log = tmp_path / "run" / "metrics.jsonl"
    arguments = [*kill.command(tmp_path / "run", data_dir, fields=TINY_ARGUMENTS), "--config.steps=100000"]
    process = subprocess.Popen(arguments, cwd=kill.ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not log.exists() or not log.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    yield arguments, process
    process.kill()


@pytest.mark.parametrize(
    ("name", "delay", "status"), [("SIGTERM", 0.0, program.STOPPED), ("SIGINT", 0.5, program.INTERRUPTED)]
)
def test_signal_in_the_first_seconds_ends_in_one_line(tmp_path, data_dir, name, delay, status):
    arguments = kill.command(tmp_path / "run", data_dir)
    process = subprocess.Popen(arguments, cwd=kill.ROOT, stderr=subprocess.PIPE, text=True)
    while not catches(process.pid, signal.SIGHUP):  # the last handler that the program installs
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(getattr(signal, name))
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == status, stderr
    assert "Traceback" not in stderr and stderr.count("kvae: ") == 1


def catches(pid, number):
    """True if a process has a handler for a signal."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("SigCgt:")[1].split()[0], 16) >> (number - 1) & 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stop_signal_remembers_each_signal(number):
    with StopSignal() as stop:
        assert not stop.requested(1)
        os.kill(os.getpid(), number)
        assert stop.requested(2)


def test_second_interrupt_raises_at_once():
    with StopSignal(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_ignored_signal_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested(1)


def test_deleted_folder_ends_the_run_in_one_line(tmp_path, training):
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    stderr = training[1].communicate(timeout=60)[1]
    assert training[1].returncode == program.MISTAKE, stderr
    # Either the next row or the checkpoint being saved notices it.
    assert "was deleted during training" in stderr or "cannot be written" in stderr
    assert stderr.count("kvae: ") == 1 and "Traceback" not in stderr


def test_sigterm_saves_and_says_how_to_continue(tmp_path, training):
    arguments, process = training
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == program.STOPPED, stderr
    assert "run the same command again to resume" in stderr
    assert "Traceback" not in stderr
    step = int(stderr.split("stopped at step ")[1].split(";")[0])
    assert (tmp_path / "run" / "checkpoints" / str(step)).exists()
    config, workdir = main.parse([*arguments[3:-1], f"--config.steps={step + 4}"])
    run(config, workdir)
    assert read_metrics(str(tmp_path / "run"))[-1]["step"] == step + 4
