"""One program at a time in a run's folder, whatever became of the one before."""

import os
import subprocess
import sys
import time

import pytest

from kvae.core.errors import InputError
from kvae.training.workdir import lock
from kvae.training.workdir.lock import Lock
from kvae.training.workdir.mirror import Mirror


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.2)


def test_a_second_program_leaves_and_says_who_is_there(tmp_path):
    message = rf"run is in use: process {os.getpid()} on .* trains there; end that, or choose another --workdir"
    with Lock(tmp_path / "run"), pytest.raises(InputError, match=message), Lock(tmp_path / "run"):
        pass
    with Lock(tmp_path / "run"):
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    assert not list((tmp_path / "run").iterdir())


def test_what_was_killed_on_this_host_blocks_nobody(tmp_path):
    program = (
        "import os, sys; from kvae.training.workdir import lock; lock.STALE_SECONDS, lock.HEARTBEAT_SECONDS = 1.5, 0.2;"
        "held = lock.Lock(sys.argv[1]); held.__enter__(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == 9
    assert (tmp_path / "lock").exists()
    begun = time.monotonic()
    with Lock(tmp_path):
        assert time.monotonic() - begun < 1


@pytest.mark.parametrize("left", ["another host's", "empty", "zeros"])
def test_a_lock_without_a_sign_of_life_is_taken_over_and_that_is_said(tmp_path, left, caplog):
    with Lock(tmp_path):
        text = (tmp_path / "lock").read_text()
    host = text.split("host=")[1].split("\n")[0]
    text = {"another host's": text.replace(f"host={host}", "host=elsewhere"), "empty": "", "zeros": "\0" * 100}[left]
    (tmp_path / "lock").write_text(text)
    begun = time.monotonic()
    with Lock(tmp_path) as held:
        assert 1 < time.monotonic() - begun < 10
        assert "is locked by" in caplog.text
        held.check()


def test_a_program_that_lost_its_folder_or_its_lock_learns_of_it(tmp_path):
    with Lock(tmp_path / "run") as held:
        held.check()
        (tmp_path / "run" / "lock").unlink()
        with pytest.raises(InputError, match="run, or the lock in it, was deleted while the run trained"):
            held.check()
        (tmp_path / "run" / "lock").write_text("another's")
        time.sleep(1)
        with pytest.raises(InputError, match="run was taken over by another program"):
            held.check()


def test_a_run_that_lost_its_lock_saves_nothing(tmp_path):
    with Lock(tmp_path / "run") as held:
        mirror = Mirror(str(tmp_path / "run"))
        mirror.open(held)
        mirror.publish_rows()
        (tmp_path / "run" / "lock").unlink()
        with pytest.raises(InputError, match="was deleted while the run trained"):
            mirror.publish_rows()  # as before every checkpoint
