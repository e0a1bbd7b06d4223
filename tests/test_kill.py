"""A run that is killed ends where the uninterrupted run ends; one that is asked to stop says how to go on."""

import signal
import subprocess
import time

import kill
from kvae import program
from kvae.training.journal import read_metrics


def test_sigkill_at_random_moments(tmp_path, data_dir):
    subprocess.run(kill.command(tmp_path / "whole", data_dir), cwd=kill.ROOT, check=True, stderr=subprocess.DEVNULL)
    kill.run_with_kills(tmp_path / "killed", data_dir, kills=2)
    assert kill.differences(tmp_path / "whole", tmp_path / "killed") == (0, 0)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path, data_dir):
    log = tmp_path / "run" / "metrics.jsonl"
    arguments = [*kill.command(tmp_path / "run", data_dir), "--config.steps=100000"]
    process = subprocess.Popen(arguments, cwd=kill.ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not log.exists() or not log.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == program.STOPPED, said
    assert "run the same command again to go on" in said
    assert "Traceback" not in said
    at = int(said.split("stopped at step ")[1].split(";")[0])
    assert (tmp_path / "run" / "checkpoints" / str(at)).exists()
    again = [*arguments[:-1], f"--config.steps={at + 20}"]
    subprocess.run(again, cwd=kill.ROOT, check=True, stderr=subprocess.DEVNULL)
    assert read_metrics(str(tmp_path / "run"))[-1]["step"] == at + 20
