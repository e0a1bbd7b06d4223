"""A bucket as a run's folder, with the real code of orbax, epath and gcsfs before an emulated store."""

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
from kvae.training.workdir import checkpoint
from kvae.training.workdir.journal import read_metrics
from kvae.training.workdir.run_config import read_config_json
from runs import assert_same_run, final_state, images, rows, run
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

sys.exit(program.run(main.main, sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def arguments(data_dir):
    fields = {
        "dataset.data_dir": data_dir, "batch_size": 8, "log_every_steps": 2, "evaluate_every_steps": 8,
        "checkpoint_every_steps": 4, "optimizer.schedule": "constant",
    }  # fmt: skip
    return ["--config=configs/photos_vqvae.py:smoke", *(f"--config.{name}={value}" for name, value in fields.items())]


def start(arguments, steps, workdir=PLACE):
    """Starts the training program, one process without TensorFlow."""
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, *arguments, f"--workdir={workdir}", f"--config.steps={steps}"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def story(bucket, arguments, tmp_path_factory):
    """A run of 8 steps that was killed as it committed step 8, and then met a bucket that was away for a while."""
    killed = start(arguments, 8)
    bucket.at("runs/one/checkpoints/8/commit_success.txt", killed.kill)
    killed.communicate(timeout=SECONDS)
    left = bucket.names("runs/one")
    resumed, refused = start(arguments, 8), bucket.refused
    bucket.at("name=runs/one/metrics.jsonl", lambda: bucket.go_away(5))
    said = resumed.communicate(timeout=SECONDS)[1]
    refused = bucket.refused - refused
    whole = tmp_path_factory.mktemp("whole") / "run"
    start(arguments, 8, whole).communicate(timeout=SECONDS)
    return {
        "killed": killed.returncode, "left": left, "resumed": resumed.returncode, "said": said, "refused": refused,
        "whole": whole,
    }  # fmt: skip


def test_a_run_that_was_killed_while_it_saved_ends_where_the_uninterrupted_one_ends(story, bucket):
    assert story["killed"] == -signal.SIGKILL
    assert "checkpoints/4/commit_success.txt" in story["left"] and "checkpoints/8/_CHECKPOINT_METADATA" in story["left"]
    assert "checkpoints/8/commit_success.txt" not in story["left"]
    assert story["resumed"] == 0, story["said"]
    assert story["refused"] > 0
    assert "is at step 4 of 8" in story["said"] and "Traceback" not in story["said"]
    assert_same_run(story["whole"], PLACE)


def test_the_bucket_holds_all_that_a_folder_does(story, bucket):
    names = bucket.names("runs/one")
    found = {name.partition("/")[0].partition(".tfevents")[0] for name in names}
    assert found == {"config.json", "log.txt", "metrics.jsonl", "events.out", "figures", "checkpoints"}
    assert {path.name for path in (story["whole"] / "figures").iterdir()} == {
        name.removeprefix("figures/") for name in names if name.startswith("figures/")
    }
    log = bucket.read("runs/one/log.txt").decode()
    assert log.count("training examples") == 2 and log.count("step 4/8") == 1 and log.count("is at step 4 of 8") == 1


def test_rows_come_before_the_checkpoint_that_belongs_to_them(story, bucket):
    lines = [line for line in bucket.requests if line.startswith("POST") and "runs/one/" in line]
    commits = [at for at, line in enumerate(lines) if "checkpoints/8/commit_success.txt" in line]
    written = [at for at, line in enumerate(lines) if "name=runs/one/metrics.jsonl" in line]
    assert written[-1] < commits[0]


def test_programs_read_a_bucket(story, tmp_path, capsys):
    opened, there = kvae.load(PLACE), kvae.load(str(story["whole"]))
    assert opened.step == 8 and opened.metrics == read_metrics(PLACE)
    few = images(4, seed=0)
    np.testing.assert_array_equal(opened.reconstruct(few), there.reconstruct(few))
    opened.save_pretrained(tmp_path / "shared")
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
    assert (tmp_path / "tokens" / "tokens.json").exists()


def refuse(*_, **__):
    """As gcsfs where a bucket lets nobody in any more."""
    raise OSError("Forbidden: it was locked up meanwhile")


@pytest.mark.parametrize("read", [read_metrics, read_config_json, check, lambda place: run_folders([place])])
def test_a_bucket_that_refuses_what_is_read_is_one_line(bucket, read, monkeypatch):
    monkeypatch.setattr(type(buckets.as_path(PLACE)), "exists", refuse)
    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(InputError, match=f"{PLACE} cannot be reached: Forbidden"):
        read(PLACE)


def test_programs_that_a_bucket_refuses_say_so_in_one_line(bucket, monkeypatch, capsys):
    monkeypatch.setattr(type(buckets.as_path(PLACE)), "exists", refuse)
    assert program.run(tokenize.main, [PLACE, "--images=images", "--out=tokens"]) == program.MISTAKE
    said = capsys.readouterr().err
    assert f"{PLACE} cannot be reached: Forbidden" in said and said.count("\n") == 1


def test_another_number_of_processes_goes_on(story, bucket, arguments):
    said, statuses = finish(start_two([*arguments, f"--workdir={PLACE}", "--config.steps=12"]))
    assert statuses == [0, 0], said
    assert "is at step 8 of 12" in said[0]
    assert [row["step"] for row in rows(PLACE)] == list(range(2, 13, 2))
    assert int(final_state(PLACE)["step"][0]) == 12
    assert rows(PLACE)[:4] == rows(story["whole"])


def test_a_damaged_checkpoint_is_set_aside_whole(story, bucket, make_config, undrawn, caplog):
    config, place = make_config(steps=4, checkpoint_every_steps=2), "gs://bucket/runs/damaged"
    run(config, place)
    before, state = bucket.names("runs/damaged/checkpoints/4"), final_state(place)
    for name in before:
        if "/d/" in name:
            content = bytearray(bucket.read(f"runs/damaged/checkpoints/4/{name}"))
            content[len(content) // 2] ^= 1
            bucket.write(f"runs/damaged/checkpoints/4/{name}", bytes(content))
    begun = time.monotonic()
    run(config, place)
    assert time.monotonic() - begun < 30
    assert "checkpoint 4 is damaged" in caplog.text
    assert bucket.names("runs/damaged/checkpoints/damaged-4") == before
    np.testing.assert_array_equal(final_state(place)["step"], state["step"])
    assert [row["step"] for row in rows(place)] == [2, 4]


@pytest.mark.parametrize("words", ["UNAVAILABLE: a peer has gone", "RESOURCE_EXHAUSTED: Out of memory", "ABORTED: x"])
def test_what_jax_raises_is_not_said_of_the_bucket(words):
    with pytest.raises(jax.errors.JaxRuntimeError), buckets.wrap_bucket_errors(PLACE):
        raise jax.errors.JaxRuntimeError(words)


def test_a_bucket_that_does_not_answer_is_not_taken_for_damage(story, monkeypatch):
    def restore(*_, **__):
        raise ValueError("ABORTED: All 32 retry attempts failed: [http_response_code='503']")  # as tensorstore has it

    monkeypatch.setattr(checkpoint._Manager, "restore", restore)
    with pytest.raises(InputError, match=f"{PLACE} cannot be reached: ABORTED"):
        kvae.load(PLACE)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--workdir=gs://nowhere/run", "gs://nowhere/run: there is no bucket 'nowhere'"),
        ("--workdir=gs://bucket", "it must name a folder in a bucket, such as gs://my-bucket/runs/photos"),
        ("--workdir=s3://bucket/run", "--workdir is s3://bucket/run; it must be a path: mount the bucket"),
        ("--workdir=hdfs://host/run", "--workdir is hdfs://host/run; it must be a path"),
        ("--config.dataset.data_dir=gs://bucket/data", "it must be a path: mount the bucket"),
    ],
)
def test_an_address_that_does_not_do_is_one_line(bucket, arguments, argument, message, capsys):
    assert program.run(main.main, [*arguments, argument]) == program.MISTAKE
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_without_credentials_one_line_says_what_helps(monkeypatch, tmp_path, arguments, capsys):
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    begun = time.monotonic()
    assert program.run(main.main, [*arguments, f"--workdir={PLACE}"]) == program.MISTAKE
    assert time.monotonic() - begun < 30
    said = capsys.readouterr().err
    assert "needs credentials, and there are none: gcloud auth application-default login" in said
    assert said.count("\n") == 1


def test_without_a_role_one_line_says_which(bucket, arguments, monkeypatch, capsys):
    def get_bucket(*_, **__):
        raise google.api_core.exceptions.Forbidden("x does not have storage.buckets.get access")

    monkeypatch.setattr(google.cloud.storage.Client, "get_bucket", get_bucket)
    assert program.run(main.main, [*arguments, f"--workdir={PLACE}"]) == program.MISTAKE
    said = capsys.readouterr().err
    assert "does not have storage.buckets.get access" in said and said.count("\n") == 1
    assert "roles/storage.objectUser and roles/storage.legacyBucketReader" in said


def test_the_address_of_a_bucket_is_no_path_of_pathlib():
    with pytest.raises(InputError, match=r"the run is gs:/bucket/run, .*; give it as a string, 'gs://bucket/run'"):
        kvae.load(pathlib.Path("gs://bucket/run"))


def test_a_bucket_that_stays_away_is_one_line(bucket, arguments, monkeypatch, capsys):
    monkeypatch.setattr(buckets, "LONGEST_WAIT_SECONDS", 2)
    bucket.go_away(30)
    begun = time.monotonic()
    assert program.run(main.main, [*arguments, f"--workdir={PLACE}"]) == program.MISTAKE
    assert time.monotonic() - begun < 15
    bucket.go_away(0)
    said = capsys.readouterr().err
    assert f"{PLACE} cannot be reached: " in said and said.count("\n") == 1
