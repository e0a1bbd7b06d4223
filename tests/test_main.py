"""The command line: every config trains, and every mistake is one line."""

import ast
import contextlib
import pathlib

import numpy as np
import pytest
from PIL import Image

import archives
from disks import full_disk
from kvae import main
from kvae.core import program
from kvae.training.config.sections import build_model, flatten, validate_config
from kvae.training.workdir.journal import read_metrics

pytestmark = pytest.mark.usefixtures("in_the_project")

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*_*.py"))


# Configs with the model of another one: with its mean and std too, they share its compiled programs.
SAME_PROGRAMS = ("imagenet_vqvae2", "cifar10_vqvae", "photos_sweep", "wallpapers_vqvae", "wallpapers_vqvae2")
DRAWN = ("photos_vqvae", "photos_vqvae2", "digits_urlsom")
"""A config of each model, whose smoke form draws its figures too; they take half of the time."""


def start(*arguments):
    """Runs the program in this process; returns its exit status."""
    return program.run(main.main, list(arguments))


def error_line(capsys, *arguments):
    """Returns the only line of a program that fails."""
    assert start(*arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("kvae: ")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    return lines[0]


def make_folder(path, count=6):
    """Writes images of several formats and shapes into nested folders."""
    rng = np.random.default_rng(0)
    for i in range(count):
        image = Image.fromarray(rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8))
        folder = path / f"album {i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        image.convert("L" if i == 0 else "RGB").save(folder / f"{i}.{['png', 'jpg', 'bmp'][i % 3]}")
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_smoke_form_of_every_config_trains(name, tmp_path, data_dir, monkeypatch):
    if name not in DRAWN:
        monkeypatch.setattr("kvae.training.pictures.draw", lambda *of_run: None)
    arguments = [f"--config=configs/{name}.py:smoke", f"--workdir={tmp_path / 'run'}"]
    dataset = name.partition("_")[0]
    if name in SAME_PROGRAMS:
        arguments += [f"--config.dataset.{field}=(127.5, 127.5, 127.5)" for field in ("mean", "std")]
    with contextlib.ExitStack() as stack:
        if dataset in ("folder", "wallpapers"):
            arguments.append(f"--config.dataset.path={make_folder(tmp_path / 'data', count=24)}")
            arguments.append(f"--config.dataset.data_dir={tmp_path / 'crops'}")
        elif dataset == "photos":
            arguments.append(f"--config.dataset.data_dir={data_dir}")
        elif dataset not in ("digits", "tokens"):
            arguments.append(f"--config.dataset.data_dir={tmp_path / 'data'}")
            getattr(archives, f"make_{dataset}")(tmp_path / "data")
            stack.enter_context(archives.recorded_checksums(tmp_path / "data"))
        assert start(*arguments) == 0
    last = read_metrics(str(tmp_path / "run"))[-1]
    assert last["step"] == 4
    assert np.isfinite(last["train/loss"])
    assert np.isfinite(last["valid/loss"])
    if name in DRAWN:
        assert (tmp_path / "run" / "figures" / "curves.png").stat().st_size > 1_000


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_complete_and_build_a_model(name):
    tree = ast.parse((ROOT / "configs" / f"{name}.py").read_text())
    assert ast.get_docstring(tree).count(f"--config=configs/{name}.py") == 1
    config, workdir = main.parse([f"--config=configs/{name}.py"])
    assert workdir == f"runs/{name}"
    assert set(flatten(config)) == set(flatten(validate_config(config)))  # complete: no default is hidden
    build_model(validate_config(config))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10_vqvae", dict(steps=30_000, batch_size=256, learning_rate=1e-3, evaluate_every_steps=1_000)),
        ("imagenet_vqvae2", dict(steps=30_000, batch_size=128, learning_rate=3e-4, evaluate_every_steps=1_000)),
        ("wallpapers_vqvae2", dict(steps=30_000, batch_size=128, learning_rate=3e-4, evaluate_every_steps=1_000)),
        ("faces_vqvae2", dict(steps=30_000, batch_size=128, learning_rate=3e-4, evaluate_every_steps=1_000)),
    ],
)
def test_hyper_parameters_are_those_of_the_paper(name, expected):
    config, _ = main.parse([f"--config=configs/{name}.py"])
    assert {**config, **config["optimizer"]} | expected == {**config, **config["optimizer"]}
    model = dict(embedding_dim=64, channels=128, residual_channels=32, residual_blocks=2)
    assert config["model"] | model == config["model"]
    quantizer = dict(
        grid_shape=(16, 32),
        neighborhood="hard",
        initial_width=1.0,
        lowest_width=0.0,
        shrink_step=0.1,
        radius=1.5,
        decay=0.99,
        commitment_weight=0.25,
        init_count=1.0,
        update_empty=True,
    )
    assert config["model"]["quantizer"] | quantizer == config["model"]["quantizer"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing; for example --config=configs/photos_vqvae.py"),
        (["--config=configs/photo_vqvae.py"], "there is no such file; configs/ has configs/cifar10_"),
        (["--config=configs/photos_vqvae.py:smokee"], "smokee"),
        (
            ["--config=configs/photos_vqvae.py", "--config.model.quantizer.neighbourhood=none"],
            "did you mean 'neighborhood'?",
        ),
        (["--config=configs/photos_vqvae.py", "--config.modle.radius=2"], "did you mean 'model'?"),
        (
            ["--config=configs/photos_vqvae.py", "--config.steps=many"],
            "config.steps is 'many'; it must be an integer >= 1",
        ),
        (
            ["--config=configs/photos_vqvae.py", "--confg.steps=1"],
            "'--confg.steps=1' is not an option; set fields like this",
        ),
        (["--config=configs/photos_vqvae.py", "steps=1"], "'steps=1' is not an option; set fields like this"),
        (
            ["--config=configs/photos_vqvae.py", "--config.model.quantizer.grid_shape=(0,4)"],
            "grid_shape is (0, 4); it must be",
        ),
        (["--config=configs/photos_vqvae.py", "--config.model.quantizer.neighborhood=hrad"], "neighborhood is 'hrad'"),
        (["--config=configs/photos_vqvae.py", "--config.dataset.name=foto"], "dataset.name is 'foto'"),
        (
            ["--config=configs/photos_vqvae.py", "--config.batch_size=0"],
            "batch_size is 0; it must be an integer >= 1",
        ),
        (["--config=configs/folder_vqvae.py"], "dataset.path"),
        (["--config=configs/folder_vqvae.py", "--config.dataset.path=no/such/place"], "no/such/place"),
    ],
)
def test_every_mistake_is_one_line(arguments, message, capsys, tmp_path, data_dir):
    if arguments and "photos" in arguments[0]:
        arguments = [*arguments, f"--config.dataset.data_dir={data_dir}"] if "smokee" not in arguments[0] else arguments
    assert message in error_line(capsys, *arguments, f"--workdir={tmp_path / 'run'}")
    assert not (tmp_path / "run" / "config.json").exists()


def test_help_names_every_flag(capsys):
    assert start("--help") == 0
    output = capsys.readouterr().out
    assert all(flag in output for flag in ("--config=", "--workdir", "--config.FIELD", "--debug"))


def test_debug_shows_the_traceback(capsys):
    assert start("--config=configs/none_such.py", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cifar10_vqvae", "imagenet_vqvae2", "faces_vqvae2"])
def test_a_missing_data_set_is_named_with_its_folder(name, capsys, tmp_path):
    line = error_line(
        capsys, f"--config=configs/{name}.py", f"--workdir={tmp_path / 'run'}", f"--config.dataset.data_dir={tmp_path}"
    )
    assert str(tmp_path) in line


def test_broken_images_are_named_or_skipped(capsys, tmp_path, undrawn):
    folder = make_folder(tmp_path / "images", count=24)
    broken = folder / "album 0" / "broken.jpg"
    broken.write_bytes((folder / "album 1" / "1.jpg").read_bytes()[:300])
    arguments = [
        "--config=configs/folder_vqvae.py:smoke", f"--config.dataset.path={folder}", f"--workdir={tmp_path / 'run'}"
    ]  # fmt: skip
    assert "broken.jpg" in error_line(capsys, *arguments)
    assert start(*arguments, "--config.dataset.skip_unreadable=True") == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "skipped 1 of 25 images because they are unreadable (album 0/broken.jpg: " in log
    assert broken.exists()


def test_a_file_in_place_of_the_workdir_is_kept(capsys, tmp_path, data_dir):
    path = tmp_path / "file"
    path.write_text("mine")
    line = error_line(
        capsys, "--config=configs/photos_vqvae.py:smoke", f"--workdir={path}", f"--config.dataset.data_dir={data_dir}"
    )
    assert f"--workdir={path} cannot be written" in line
    assert path.read_text() == "mine"


def test_image_size_must_fit_the_downsampling(capsys, tmp_path):
    folder = make_folder(tmp_path / "images")
    line = error_line(
        capsys,
        "--config=configs/folder_vqvae.py:smoke",
        f"--config.dataset.path={folder}",
        "--config.dataset.size=30",
        f"--workdir={tmp_path / 'run'}",
    )
    assert "images are 30 x 30; height and width must be multiples of 4" in line


def test_a_full_disk_is_one_line_and_the_run_resumes(capsys, tmp_path, data_dir, undrawn):
    arguments = [
        "--config=configs/photos_vqvae.py:smoke", f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.data_dir={data_dir}", "--config.optimizer.schedule=constant",
    ]  # fmt: skip
    assert start(*arguments) == 0
    with full_disk():
        assert "cannot be written" in error_line(capsys, *arguments, "--config.steps=8")
    assert [row["step"] for row in read_metrics(str(tmp_path / "run"))][:2] == [2, 4]
    assert start(*arguments, "--config.steps=8") == 0
    assert [row["step"] for row in read_metrics(str(tmp_path / "run"))] == [2, 4, 6, 8]
