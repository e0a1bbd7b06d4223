"""A bucket as a run's folder: the real code of Orbax, epath and gcsfs against an emulated store."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import fsspec
import google.api_core.exceptions
import google.cloud.storage
import jax
import numpy as np
import PIL.Image
import pytest

import kvae
from kvae import main
from kvae.core import buckets, program
from kvae.core.errors import InputError
from kvae.report import __main__ as report
from kvae.runs.check import check
from kvae.runs.seeds import run_folders
from kvae.tokenize import __main__ as tokenize
from kvae.training.workdir import lock, orbax_manager
from kvae.training.workdir.journal import read_metrics
from kvae.training.workdir.run_config import read_config_json
from runs import TINY_ARGUMENTS, assert_same_run, final_state, images, rows, run
from test_multiprocess import finish, start_two

PLACE = "gs://bucket/runs/one"
SECONDS = 120

WITHOUT_TENSORFLOW = """
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(lambda name, *where: None if name == "tensorflow" else find(name, *where))
from kvae import main
from kvae.core import program
from kvae.training.workdir import lock

lock.STALE_SECONDS, lock.HEARTBEAT_SECONDS = 3, 0.5
sys.exit(program.run(main.main, sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def arguments(data_dir):
    fields = {
        "dataset.data_dir": data_dir, "batch_size": 8, "log_every_steps": 2, "evaluate_every_steps": 8,
        "checkpoint_every_steps": 4, "steps": 8,
    }  # fmt: skip
    fields = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["--config=configs/photos_vqvae.py:smoke", *fields, *TINY_ARGUMENTS]


@pytest.fixture(scope="module")
def story(bucket, arguments, tmp_path_factory):
    """A run of 8 steps, killed while it commits step 8; when it is resumed, the bucket is away for a while.

    The killed process has no TensorFlow, as most installations.
    """
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, *arguments, f"--workdir={PLACE}"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}  # as in this process, or sums round differently
    killed = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    bucket.at("runs/one/checkpoints/8/commit_success.txt", killed.kill)
    killed.wait(timeout=SECONDS)
    names_after_kill, refused = bucket.names("runs/one"), bucket.refused
    bucket.at("name=runs/one/metrics.jsonl", lambda: bucket.go_away(5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "STALE_SECONDS", 3)
        patch.setattr(lock, "HEARTBEAT_SECONDS", 0.5)
        resumed = program.run(main.main, [*arguments, f"--workdir={PLACE}"])
    refused = bucket.refused - refused
    local = tmp_path_factory.mktemp("uninterrupted") / "run"
    run(main.parse(arguments)[0], local, devices=8)
    return {
        "killed": killed.returncode, "names_after_kill": names_after_kill, "resumed": resumed, "refused": refused,
        "local": local,
    }  # fmt: skip


def test_run_killed_while_saving_ends_like_the_uninterrupted_one(story, bucket):
    assert story["killed"] == -signal.SIGKILL
    assert "checkpoints/4/commit_success.txt" in story["names_after_kill"]
    assert "checkpoints/8/_CHECKPOINT_METADATA" in story["names_after_kill"]
    assert "checkpoints/8/commit_success.txt" not in story["names_after_kill"]
    assert story["resumed"] == 0
    assert story["refused"] > 0
    assert_same_run(story["local"], PLACE)


def test_bucket_holds_all_files_of_a_run(story, bucket):
    names = bucket.names("runs/one")
    kinds = {name.partition("/")[0].partition(".tfevents")[0] for name in names}
    assert kinds == {"config.json", "log.txt", "metrics.jsonl", "events.out", "figures", "checkpoints"}
    assert {path.name for path in (story["local"] / "figures").iterdir()} == {
        name.removeprefix("figures/") for name in names if name.startswith("figures/")
    }
    log = bucket.read("runs/one/log.txt").decode()
    assert log.count("training examples") == 2 and log.count("step 4/8") == 1 and log.count("is at step 4 of 8") == 1
    assert "Traceback" not in log


def test_rows_are_uploaded_before_their_checkpoint(story, bucket):
    lines = [line for line in bucket.requests if line.startswith("POST") and "runs/one/" in line]
    commits = [at for at, line in enumerate(lines) if "checkpoints/8/commit_success.txt" in line]
    uploads = [at for at, line in enumerate(lines) if "name=runs/one/metrics.jsonl" in line]
    assert uploads[-1] < commits[0]


def test_programs_read_runs_in_a_bucket(story, tmp_path, capsys):
    remote, local = kvae.load(PLACE), kvae.load(str(story["local"]))
    assert remote.step == 8 and remote.metrics == read_metrics(PLACE)
    few = images(4, seed=0)
    np.testing.assert_array_equal(remote.reconstruct(few), local.reconstruct(few))
    remote.save_pretrained(tmp_path / "shared")
    assert (tmp_path / "shared" / "figures" / "curves.png").exists()
    assert (tmp_path / "shared" / "metrics.jsonl").read_text().count("\n") == 4
    capsys.readouterr()
    assert program.run(report.main, ["gs://bucket/runs"]) == 0
    assert PLACE in capsys.readouterr().out
    assert program.run(report.main, [PLACE, "--check"]) == 0
    assert f"{PLACE}: checkpoint 8: intact" in capsys.readouterr().out
    (tmp_path / "images").mkdir()
    PIL.Image.fromarray(few[0]).save(tmp_path / "images" / "one.png")
    command = [PLACE, f"--images={tmp_path / 'images'}", f"--out={tmp_path / 'tokens'}"]
    assert program.run(tokenize.main, command) == 0
    assert (tmp_path / "tokens" / "_tokens.json").exists()


def refuse(*_, **__):
    """Raises as gcsfs does if a bucket denies access."""
    raise OSError("Forbidden: access was withdrawn")


@pytest.mark.parametrize(
    "read", [read_metrics, read_config_json, lambda place: check([place]), lambda place: run_folders([place])]
)
def test_bucket_that_denies_reading_is_one_line(bucket, read, monkeypatch):
    monkeypatch.setattr(type(buckets.as_path(PLACE)), "exists", refuse)
    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(InputError, match=f"{PLACE} cannot be reached: Forbidden"):
        read(PLACE)


def test_programs_report_a_denied_bucket_in_one_line(bucket, monkeypatch, capsys):
    monkeypatch.setattr(type(buckets.as_path(PLACE)), "exists", refuse)
    assert program.run(tokenize.main, [PLACE, "--images=images", "--out=tokens"]) == program.MISTAKE
    stderr = capsys.readouterr().err
    assert f"{PLACE} cannot be reached: Forbidden" in stderr and stderr.count("\n") == 1


def test_run_resumes_on_another_number_of_processes(story, bucket, arguments):
    stderr, statuses = finish(start_two([*arguments, f"--workdir={PLACE}", "--config.steps=12"]))
    assert statuses == [0, 0], stderr
    assert "is at step 8 of 12" in stderr[0]
    assert [row["step"] for row in rows(PLACE)] == list(range(2, 13, 2))
    assert int(final_state(PLACE)["step"][0]) == 12
    assert rows(PLACE)[:4] == rows(story["local"])


def test_corrupted_checkpoint_is_set_aside_completely(story, bucket, make_config, undrawn, caplog):
    config, place = make_config(steps=4, checkpoint_every_steps=2), "gs://bucket/runs/corrupted"
    run(config, place)
    before, state = bucket.names("runs/corrupted/checkpoints/4"), final_state(place)
    for name in before:
        if "/d/" in name:
            content = bytearray(bucket.read(f"runs/corrupted/checkpoints/4/{name}"))
            content[len(content) // 2] ^= 1
            bucket.write(f"runs/corrupted/checkpoints/4/{name}", bytes(content))
    started = time.monotonic()
    run(config, place)
    assert time.monotonic() - started < 60
    assert "checkpoint 4 is corrupted" in caplog.text
    assert bucket.names("runs/corrupted/checkpoints/corrupted-4") == before
    np.testing.assert_array_equal(final_state(place)["step"], state["step"])
    assert [row["step"] for row in rows(place)] == [2, 4]


@pytest.mark.parametrize("words", ["UNAVAILABLE: a peer has gone", "RESOURCE_EXHAUSTED: Out of memory", "ABORTED: x"])
def test_errors_of_jax_are_not_blamed_on_the_bucket(words):
    with pytest.raises(jax.errors.JaxRuntimeError), buckets.wrap_bucket_errors(PLACE):
        raise jax.errors.JaxRuntimeError(words)


def test_silent_bucket_is_not_reported_as_corruption(story, monkeypatch):
    def restore(*_, **__):
        raise ValueError("ABORTED: All 32 retry attempts failed: [http_response_code='503']")  # as tensorstore does

    monkeypatch.setattr(orbax_manager.Manager, "restore", restore)
    with pytest.raises(InputError, match=f"{PLACE} cannot be reached: ABORTED"):
        kvae.load(PLACE)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--workdir=gs://nowhere/run", "gs://nowhere/run: bucket 'nowhere' does not exist"),
        ("--workdir=gs://bucket", "it must name a folder in a bucket, such as gs://my-bucket/runs/photos"),
        ("--workdir=s3://bucket/run", "--workdir is s3://bucket/run; it must be a path: mount the bucket"),
        ("--workdir=hdfs://host/run", "--workdir is hdfs://host/run; it must be a path"),
        ("--config.dataset.data_dir=gs://bucket/data", "it must be a path: mount the bucket"),
    ],
)
def test_wrong_address_is_one_line(bucket, arguments, argument, message, capsys):
    assert program.run(main.main, [*arguments, argument]) == program.MISTAKE
    stderr = capsys.readouterr().err
    assert message in stderr and stderr.count("\n") == 1


def test_missing_credentials_are_one_line_with_the_remedy(monkeypatch, tmp_path, arguments, capsys):
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    started = time.monotonic()
    assert program.run(main.main, [*arguments, f"--workdir={PLACE}"]) == program.MISTAKE
    assert time.monotonic() - started < 60
    stderr = capsys.readouterr().err
    assert "needs credentials, but none were found: run gcloud auth application-default login" in stderr
    assert stderr.count("\n") == 1


def test_missing_role_is_named_in_one_line(bucket, arguments, monkeypatch, capsys):
    def get_bucket(*_, **__):
        raise google.api_core.exceptions.Forbidden("x does not have storage.buckets.get access")

    monkeypatch.setattr(google.cloud.storage.Client, "get_bucket", get_bucket)
    assert program.run(main.main, [*arguments, f"--workdir={PLACE}"]) == program.MISTAKE
    stderr = capsys.readouterr().err
    assert "does not have storage.buckets.get access" in stderr and stderr.count("\n") == 1
    assert "roles/storage.objectUser and roles/storage.legacyBucketReader" in stderr


def test_address_given_as_a_pathlib_path_is_an_error():
    with pytest.raises(InputError, match=r"the run is gs:/bucket/run, .*; pass the string 'gs://bucket/run' instead"):
        kvae.load(pathlib.Path("gs://bucket/run"))


def test_bucket_that_stays_away_is_one_line(bucket, arguments, monkeypatch, capsys):
    monkeypatch.setattr(buckets, "CONNECT_SECONDS", 2)
    bucket.go_away(30)
    started = time.monotonic()
    assert program.run(main.main, [*arguments, f"--workdir={PLACE}"]) == program.MISTAKE
    assert time.monotonic() - started < 15
    bucket.go_away(0)
    stderr = capsys.readouterr().err
    assert f"{PLACE} cannot be reached: " in stderr and stderr.count("\n") == 1
