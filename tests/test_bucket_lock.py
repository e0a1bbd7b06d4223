"""One program at a time in a bucket: its lock, and what a program may write that has lost it."""

import os
import re
import subprocess
import threading
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
