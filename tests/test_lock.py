"""One program at a time trains in a run's folder, whatever happened to the previous one."""

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
def short_times(monkeypatch):
    monkeypatch.setattr(lock, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.2)


def test_second_program_is_told_who_holds_the_lock(tmp_path):
    message = rf"run is in use: process {os.getpid()} on .* is training there; stop it, or choose another --workdir"
    with Lock(tmp_path / "run"), pytest.raises(InputError, match=message), Lock(tmp_path / "run"):
        pass
    with Lock(tmp_path / "run"):
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    assert not list((tmp_path / "run").iterdir())


def test_lock_of_process_killed_here_is_taken_at_once(tmp_path):
    program = (
        "import os, sys; from kvae.training.workdir.lock import Lock; "
        "held = Lock(sys.argv[1]); held.__enter__(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == 9
    assert (tmp_path / "lock").exists()
    started = time.monotonic()
    with Lock(tmp_path):
        assert time.monotonic() - started < 1


@pytest.mark.parametrize("content", ["another host's", "empty", "zeros"])
def test_stale_lock_is_taken_over_with_a_warning(tmp_path, content, caplog):
    with Lock(tmp_path):
        text = (tmp_path / "lock").read_text()
    host = text.split("host=")[1].split("\n")[0]
    text = {"another host's": text.replace(f"host={host}", "host=elsewhere"), "empty": "", "zeros": "\0" * 100}[content]
    (tmp_path / "lock").write_text(text)
    started = time.monotonic()
    with Lock(tmp_path) as held:
        assert 1 < time.monotonic() - started < 10
        assert "is locked by" in caplog.text
        held.check()


def test_check_reports_a_lock_deleted_or_taken(tmp_path):
    with Lock(tmp_path / "run") as held:
        held.check()
        (tmp_path / "run" / "lock").unlink()
        with pytest.raises(InputError, match="run, or the lock in it, was deleted during training"):
            held.check()
        (tmp_path / "run" / "lock").write_text("another's")
        time.sleep(1)
        with pytest.raises(InputError, match="run was taken over by another program"):
            held.check()


def test_run_that_lost_its_lock_saves_nothing(tmp_path):
    workdir = str(tmp_path / "run")
    with Lock(workdir) as held:
        mirror = Mirror(workdir, workdir)
        mirror.open(held)
        mirror.upload_rows()
        (tmp_path / "run" / "lock").unlink()
        with pytest.raises(InputError, match="was deleted during training"):
            mirror.upload_rows()  # as before every checkpoint
