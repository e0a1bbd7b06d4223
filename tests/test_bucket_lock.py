"""One program at a time trains in a bucket: its lock, and what a program that lost it may not write."""

import os
import pathlib
import shutil
import threading
import time

import pytest

from kvae.core.errors import InputError
from kvae.training.workdir import lock, mirror
from kvae.training.workdir.bucket_lock import BucketLock
from kvae.training.workdir.mirror import Mirror, locked_workdir, mirrored


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(lock, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.2)


def test_second_program_is_told_who_holds_the_lock(bucket):
    workdir = "gs://bucket/runs/locked"
    message = rf"locked is in use: process {os.getpid()} on .* is training there; stop it, or choose another --workdir"
    with BucketLock(workdir) as held:
        with pytest.raises(InputError, match=message), BucketLock(workdir):
            pass
        held.check()
    with BucketLock(workdir):
        assert bucket.names("runs/locked") == ["lock"]
    assert bucket.names("runs/locked") == []


@pytest.mark.parametrize(
    ("content", "holder"), [("process 7 on elsewhere\nx\n", "process 7 on elsewhere"), ("\0" * 100, "another program")]
)
def test_stale_lock_is_taken_over_with_a_warning(bucket, content, holder, caplog):
    bucket.write("runs/stale/lock", content.encode())
    started = time.monotonic()
    with BucketLock("gs://bucket/runs/stale") as held:
        assert 1 < time.monotonic() - started < 10
        held.check()
    assert f"is locked by {holder}" in caplog.text


def test_check_reports_a_lock_deleted_or_taken(bucket):
    with BucketLock("gs://bucket/runs/lost") as held:
        bucket.delete("runs/lost/lock")
        time.sleep(0.6)
        with pytest.raises(InputError, match="lost, or the lock in it, was deleted during training"):
            held.check()
        bucket.write("runs/lost/lock", b"another's")
        with pytest.raises(InputError, match="lost was taken over by another program"):
            held.check()
    assert bucket.names("runs/lost") == ["lock"]


def test_addresses_of_one_folder_are_one_lock(bucket):
    with (
        BucketLock("gs://bucket/runs/two"),
        pytest.raises(InputError, match="is in use"),
        BucketLock("gs://bucket/runs//two/"),
    ):
        pass


def test_machine_that_was_suspended_asks_before_it_writes(bucket, monkeypatch):
    with BucketLock("gs://bucket/runs/asleep") as held:
        held._ended.set()
        time.sleep(0.5)
        bucket.write("runs/asleep/lock", b"another's")
        held.check()
        monkeypatch.setattr(time, "time", lambda now=time.time: now() + 3600)
        with pytest.raises(InputError, match="asleep was taken over by another program"):
            held.check()


def test_bug_in_the_heartbeat_is_not_hidden(bucket, monkeypatch):
    errors = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    with BucketLock("gs://bucket/runs/bug") as held:
        monkeypatch.setattr(held, "_write", lambda expected: 1 / 0)
        time.sleep(0.6)
    assert [error.exc_type for error in errors] == [ZeroDivisionError]


@pytest.fixture
def lost(bucket, tmp_path):
    """The mirror of a run that another program has taken over, with that program's rows; it has new rows itself."""
    workdir = "gs://bucket/runs/mirrored"
    with BucketLock(workdir) as held:
        lost = Mirror(workdir, str(tmp_path))
        lost.open(held)
        (tmp_path / "metrics.jsonl").write_text("own")
        bucket.write("runs/mirrored/lock", b"another's")
        bucket.write("runs/mirrored/metrics.jsonl", b"another's")
        time.sleep(0.6)
        yield lost
    assert bucket.read("runs/mirrored/metrics.jsonl") == b"another's"


@pytest.mark.parametrize("act", ["upload_rows", "close"])
def test_program_that_lost_its_lock_writes_nothing(lost, act):
    with pytest.raises(InputError, match="taken over by another program"):
        getattr(lost, act)()


def test_waiting_upload_is_dropped_when_the_lock_is_lost(lost, monkeypatch, caplog):
    monkeypatch.setattr(mirror, "UPLOAD_SECONDS", 0)
    lost.upload()
    with pytest.raises(InputError, match="taken over by another program"):
        lost.close()
    assert "training continues" not in caplog.text


class AlwaysHeld:
    """A lock that is never lost."""

    def check(self):
        """Does nothing."""


def refuse(*_):
    """Raises as gcsfs does if a bucket denies writing."""
    raise OSError("Forbidden: gs://bucket/runs")


def test_files_refused_at_the_end_stay_in_the_local_folder(bucket, monkeypatch):
    message = "the last rows, log and figures are in"
    with pytest.raises(InputError, match=message) as raised, mirrored("gs://bucket/runs/away") as small:
        small.open(AlwaysHeld())
        pathlib.Path(small.folder, "log.txt").write_text("logged")
        monkeypatch.setattr(type(small._bucket_folder), "write_bytes", refuse)
        small.close()
    folder = pathlib.Path(small.folder)
    assert str(folder) in str(raised.value) and (folder / "log.txt").read_text() == "logged"
    shutil.rmtree(folder.parent)


def test_local_folder_is_removed_after_the_upload(bucket):
    with mirrored("gs://bucket/runs/there") as small:
        small.open(AlwaysHeld())
        pathlib.Path(small.folder, "log.txt").write_text("logged")
        small.close()
    assert bucket.read("runs/there/log.txt") == b"logged" and not pathlib.Path(small.folder).parent.exists()


def test_original_error_wins_over_upload_error(bucket, monkeypatch):
    with pytest.raises(ZeroDivisionError), locked_workdir("gs://bucket/runs/ended") as small:
        monkeypatch.setattr(small, "_upload_all", lambda: [][0])
        1 / 0  # noqa: B018
