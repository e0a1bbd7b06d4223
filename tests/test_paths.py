"""Paths that users give: every door opens them with `user_path`, and refuses what is not a path in one line."""

import os

import pytest

import kvae
from kvae import data
from kvae.core import files, program
from kvae.core.buckets import check_address
from kvae.data import ImageSpec
from kvae.data.listing import read_images
from kvae.report import __main__ as report
from kvae.runs.export import export_run
from kvae.runs.run import Run
from kvae.runs.share import read_weights
from kvae.tokenize import __main__ as tokenize
from kvae.training.workdir.run_config import open_address
from refusals import refusal

BAD = {
    "a\0b": "a path cannot contain a NUL byte",
    "~nouser_of_this_name/x": "there is no user 'nouser_of_this_name'",
    "n" * 5000: "each name in a path must have at most 255 bytes",
    "{}/loop": "cannot be opened: Too many levels of symbolic links",
    "a\ud800b": "a path cannot contain the character '\\ud800'",
    "gs://bucket/x": "it must be a path",
    "/".join(["abc"] * 2000): "cannot be opened: File name too long",
}
NO_PATHS = [3, 2.5, None, True, b"bytes", ["a"]]


@pytest.fixture
def loop(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return tmp_path


@pytest.mark.parametrize("path", BAD, ids=lambda path: repr(path[:12]))
def test_bad_paths_are_refused_at_every_door(loop, path, capsys):
    message, path = BAD[path], path.format(loop)
    assert message in refusal(files.user_path, "--out", path)
    assert message in refusal(data.load, "folder", path=path)
    assert message in refusal(data.load, "tokens", path=path)
    assert message in refusal(data.load, "photos", data_dir=path)
    assert message in refusal(read_images, path, ImageSpec(8, True))
    assert message in refusal(read_images, [path], ImageSpec(8, True))
    for option in ("--out={}", "--out=x --decode={}"):
        assert program.run(tokenize.main, ["run", *option.replace("{}", path).split(" ")]) == program.MISTAKE
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("value", NO_PATHS, ids=repr)
def test_values_that_are_not_paths_are_refused(value):
    for name in ("folder", "tokens"):
        assert "it must be a path on this machine" in refusal(data.load, name, path=value)
    assert "it must be a path on this machine" in refusal(files.user_path, "--out", value)
    assert "it must be a path" in refusal(check_address, "--workdir", value)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_weights_that_are_not_a_file_are_refused(tmp_path, make):
    make(tmp_path / "model.safetensors")
    assert "it is a folder, a pipe or a device" in refusal(read_weights, tmp_path / "model.safetensors")


def test_folders_to_write_need_utf8_names(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    assert files.user_path("--images", name).name == "\udcff"
    assert "its name is not valid UTF-8" in refusal(files.target_path, "--out", name)
    assert "its name is not valid UTF-8" in refusal(check_address, "--workdir", name)


def test_path_objects_are_paths(tmp_path):
    assert "has no images" in refusal(data.load, "folder", path=tmp_path)


@pytest.mark.parametrize("path", BAD, ids=lambda path: repr(path[:12]))
def test_bad_paths_of_runs_are_refused(loop, path, capsys):
    message, path = BAD[path], path.format(loop)
    run = Run("a run", {}, 0, None, {})
    for call in (
        kvae.from_pretrained,
        kvae.from_torch,
        run.save_pretrained,
        lambda path: export_run(run, path, "b", 8),
    ):
        assert message in refusal(call, path)
    if not path.startswith("gs://"):
        line = refusal(kvae.load, path)
        assert message in line or "its name is not valid UTF-8" in line
    options = ["--out={}", "--curves={}", "--table=3 --experiments={}", "--import={}"]
    for option in options if path.startswith("gs://") else [*options, "{}", "--check {}"]:
        arguments = option.replace("{}", path).split(" ")
        assert program.run(report.main, [*arguments, "runs"] if "=" in option else arguments) == program.MISTAKE
        error = capsys.readouterr().err
        assert message in error or "its name is not valid UTF-8" in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("value", NO_PATHS, ids=repr)
def test_values_that_are_not_paths_of_runs_are_refused(value):
    run = Run("a run", {}, 0, None, {})
    for call in (
        kvae.from_pretrained,
        kvae.from_torch,
        run.save_pretrained,
        lambda path: export_run(run, path, "b", 8),
    ):
        assert "it must be a path" in refusal(call, value)
    assert "it must be a path" in refusal(kvae.load, value)


def test_training_expands_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_address("~/run") == str(tmp_path / "run")
