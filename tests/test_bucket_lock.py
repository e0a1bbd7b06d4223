"""One program at a time in a bucket: its lock, and what a program may write that has lost it."""

import os
import subprocess
import time

import pytest

from kvae.errors import InputError
from kvae.training import bucket_lock
from kvae.training.bucket_lock import BucketLock


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
    ("left", "least", "most"), [("killed here", 0, 1), ("another host's", 1, 10), ("zeros", 1, 10)]
)
def test_a_lock_without_a_sign_of_life_is_taken_over_and_that_is_said(bucket, left, least, most, caplog):
    place, killed = "gs://bucket/runs/stale", subprocess.Popen(["true"])
    killed.wait()
    with BucketLock(place):
        text = bucket.read("runs/stale/lock").decode().replace(f"pid={os.getpid()}", f"pid={killed.pid}")
    host = text.split("host=")[1].split("\n")[0]
    text = {"killed here": text, "another host's": text.replace(host, "elsewhere"), "zeros": "\0" * 100}[left]
    bucket.write("runs/stale/lock", text.encode())
    begun = time.monotonic()
    with BucketLock(place) as lock:
        assert least <= time.monotonic() - begun < most
        lock.check()
    assert ("is locked by" in caplog.text) == (left != "killed here")


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
