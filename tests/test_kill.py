"""A run that is killed ends where the uninterrupted run ends; one that is asked to stop says how to go on."""

import pathlib
import shutil
import signal
import subprocess
import time

import pytest

import kill
from kvae.core import program
from kvae.training.workdir.journal import read_metrics


@pytest.fixture(autouse=True)
def signals_are_heeded():
    """Under nohup and in the background they are ignored, as they would be by the programs that are started here."""
    of = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in of.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigkill_at_random_moments(tmp_path, data_dir):
    subprocess.run(kill.command(tmp_path / "whole", data_dir), cwd=kill.ROOT, check=True, stderr=subprocess.DEVNULL)
    kill.run_with_kills(kill.command(tmp_path / "killed", data_dir), tmp_path / "killed", kills=3)
    assert kill.differences(tmp_path / "whole", tmp_path / "killed") == (0, 0)


@pytest.fixture
def training(tmp_path, data_dir):
    """The command of a long run in tmp_path / "run", and its process, which has begun to train."""
    log = tmp_path / "run" / "metrics.jsonl"
    arguments = [*kill.command(tmp_path / "run", data_dir), "--config.steps=100000"]
    process = subprocess.Popen(arguments, cwd=kill.ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not log.exists() or not log.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    yield arguments, process
    process.kill()


@pytest.mark.parametrize(("name", "moment"), [("SIGTERM", 0.0), ("SIGINT", 0.5), ("SIGHUP", 1.0)])
def test_a_signal_in_the_first_seconds_ends_in_one_line(tmp_path, data_dir, name, moment):
    arguments = kill.command(tmp_path / "run", data_dir)
    process = subprocess.Popen(arguments, cwd=kill.ROOT, stderr=subprocess.PIPE, text=True)
    while not catches(process.pid, signal.SIGHUP):  # Python itself is still starting; of all it is heeded last
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(moment)
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=60)
    assert process.returncode in {program.STOPPED, program.INTERRUPTED if name == "SIGINT" else program.STOPPED}, said
    # A quick machine has steps to save by then, and says that in the log.
    assert "Traceback" not in said and (said.count("kvae: ") == 1 or "again to continue" in said)


def catches(pid, number):
    """Whether a process has a handler for a signal."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("SigCgt:")[1].split()[0], 16) >> (number - 1) & 1


def test_a_folder_that_is_deleted_ends_its_run_in_one_line(tmp_path, training):
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    _, said = training[1].communicate(timeout=60)
    assert training[1].returncode == program.MISTAKE, said
    # As it is noticed by the next row, or by what is being saved.
    assert "was deleted while the run trained" in said or "cannot be written" in said
    assert said.count("kvae: ") == 1 and "Traceback" not in said


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, training, name):
    arguments, process = training
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=60)
    assert process.returncode == program.STOPPED, said
    assert "run the same command again to continue" in said
    assert "Traceback" not in said
    at = int(said.split("stopped at step ")[1].split(";")[0])
    assert (tmp_path / "run" / "checkpoints" / str(at)).exists()
    again = [*arguments[:-1], f"--config.steps={at + 20}"]
    subprocess.run(again, cwd=kill.ROOT, check=True, stderr=subprocess.DEVNULL)
    assert read_metrics(str(tmp_path / "run"))[-1]["step"] == at + 20
