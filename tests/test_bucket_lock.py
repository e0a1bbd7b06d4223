"""One program at a time in a bucket: its lock, and what a program may write that has lost it."""

import os
import pathlib
import re
import shutil
import subprocess
import threading
import time

import pytest

from kvae.core.errors import InputError
from kvae.training.workdir import bucket_lock, mirror
from kvae.training.workdir.bucket_lock import BucketLock
from kvae.training.workdir.mirror import BucketMirror, mirrored, opened


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(bucket_lock, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(bucket_lock, "HEARTBEAT_SECONDS", 0.2)


def test_a_second_program_leaves_and_says_who_is_there(bucket):
    place = "gs://bucket/runs/locked"
    message = rf"locked is in use: process {os.getpid()} on .* trains there; end that, or choose another --workdir"
    with BucketLock(place) as held:
        with pytest.raises(InputError, match=message), BucketLock(place):
            pass
        held.check()
    with BucketLock(place):
        assert bucket.names("runs/locked") == ["lock"]
    assert bucket.names("runs/locked") == []


@pytest.mark.parametrize(
    ("left", "least", "most"),
    [
        ("killed here", 0, 1),
        ("this number's", 0, 1),
        ("another machine's", 1, 10),
        ("another container's", 1, 10),
        ("zeros", 1, 10),
    ],
)
def test_a_lock_without_a_sign_of_life_is_taken_over_and_that_is_said(bucket, left, least, most, caplog):
    place, killed = "gs://bucket/runs/stale", subprocess.Popen(["true"])
    killed.wait()
    with BucketLock(place):
        own = bucket.read("runs/stale/lock").decode()
    text = own.replace(f"pid={os.getpid()}", f"pid={killed.pid}")
    text = {
        "killed here": text,
        "this number's": re.sub("token=.*", "token=x", own),  # as in containers, where all have number 1
        "another machine's": re.sub("boot=.*", "boot=x", text),  # of the same name
        "another container's": re.sub("namespace=.*", "namespace=x", text),
        "zeros": "\0" * 100,
    }[left]
    bucket.write("runs/stale/lock", text.encode())
    begun = time.monotonic()
    with BucketLock(place) as lock:
        assert least <= time.monotonic() - begun < most
        lock.check()
    assert ("is locked by" in caplog.text) == (least > 0)


def test_a_program_that_lost_its_lock_learns_of_it(bucket):
    place = "gs://bucket/runs/lost"
    with BucketLock(place) as held:
        bucket.delete("runs/lost/lock")
        time.sleep(0.6)
        with pytest.raises(InputError, match="lost, or the lock in it, was deleted while the run trained"):
            held.check()
        bucket.write("runs/lost/lock", b"another's")
        with pytest.raises(InputError, match="lost was taken over by another program"):
            held.check()
    assert bucket.names("runs/lost") == ["lock"]


def test_addresses_of_one_folder_are_one_lock(bucket):
    one, same = BucketLock("gs://bucket/runs/two"), BucketLock("gs://bucket/runs//two/")
    with one, pytest.raises(InputError, match="is in use"), same:
        pass


def test_a_machine_that_was_suspended_asks_before_it_writes(bucket, monkeypatch):
    with BucketLock("gs://bucket/runs/asleep") as held:
        held._ended.set()
        time.sleep(0.5)
        bucket.write("runs/asleep/lock", b"another's")
        held.check()
        monkeypatch.setattr(time, "time", lambda now=time.time: now() + 3600)
        with pytest.raises(InputError, match="asleep was taken over by another program"):
            held.check()


def test_a_defect_in_a_heartbeat_is_not_hidden(bucket, monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    with BucketLock("gs://bucket/runs/defect") as held:
        monkeypatch.setattr(held, "_write", lambda expected: 1 / 0)
        time.sleep(0.6)
    assert [of.exc_type for of in told] == [ZeroDivisionError]


@pytest.fixture
def lost(bucket, tmp_path):
    """The mirror of a run whose lock is another program's by now, whose rows are there; it has new ones."""
    workdir = "gs://bucket/runs/mirrored"
    with BucketLock(workdir) as lock:
        mirror = BucketMirror(workdir, str(tmp_path))
        mirror.open(lock)
        (tmp_path / "metrics.jsonl").write_text("own")
        bucket.write("runs/mirrored/lock", b"another's")
        bucket.write("runs/mirrored/metrics.jsonl", b"another's")
        time.sleep(0.6)
        yield mirror
    assert bucket.read("runs/mirrored/metrics.jsonl") == b"another's"


@pytest.mark.parametrize("act", ["publish_rows", "close"])
def test_a_program_that_lost_its_lock_writes_nothing(lost, act):
    with pytest.raises(InputError, match="taken over by another program"):
        getattr(lost, act)()


def test_what_waits_to_be_written_is_not_once_the_lock_is_lost(lost, monkeypatch, caplog):
    monkeypatch.setattr(mirror, "SECONDS_BETWEEN", 0)
    lost.publish()
    with pytest.raises(InputError, match="taken over by another program"):
        lost.close()
    assert "training goes on" not in caplog.text


class Held:
    """A lock that stays this program's."""

    def check(self):
        """Says nothing."""


def refuse(*_):
    """As gcsfs where a bucket lets nobody write."""
    raise OSError("Forbidden: gs://bucket/runs")


def test_what_the_bucket_would_not_take_at_the_end_is_kept_here(bucket, monkeypatch):
    message = "the last rows, log and pictures are in"
    with pytest.raises(InputError, match=message) as told, mirrored("gs://bucket/runs/away") as small:
        small.open(Held())
        pathlib.Path(small.folder, "log.txt").write_text("said")
        monkeypatch.setattr(type(small._place), "write_bytes", refuse)
        small.close()
    folder = pathlib.Path(small.folder)
    assert str(folder) in str(told.value) and (folder / "log.txt").read_text() == "said"
    shutil.rmtree(folder.parent)


def test_a_folder_that_is_needed_no_more_is_removed(bucket):
    with mirrored("gs://bucket/runs/there") as small:
        small.open(Held())
        pathlib.Path(small.folder, "log.txt").write_text("said")
        small.close()
    assert bucket.read("runs/there/log.txt") == b"said" and not pathlib.Path(small.folder).parent.exists()


def test_why_training_ended_counts_for_more_than_what_comes_after(bucket, monkeypatch):
    with pytest.raises(ZeroDivisionError), opened("gs://bucket/runs/ended") as mirror:
        monkeypatch.setattr(mirror, "_publish_all", lambda: [][0])
        1 / 0  # noqa: B018
