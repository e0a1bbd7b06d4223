"""Every block of the README runs."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import kvae
from kvae import main
from kvae.core import program
from kvae.report import __main__ as report
from kvae.training.train import train

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
COMMANDS = sorted(set(re.findall(r"python -m kvae\.main [^\n`]*", TEXT)))


def test_no_kind_of_block_is_left_out():
    assert {language for language, _ in BLOCKS} <= {"bash", "python", "bibtex"}


def test_python_blocks(make_config, tmp_path, monkeypatch, data_dir):
    config = make_config(
        steps=4, evaluate_every_steps=4, **{"model.quantizer.grid_shape": (16, 32), "model.embedding_dim": 64}
    )
    train(config, str(tmp_path / "runs" / "photos"), jax.devices()[:1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
    monkeypatch.setitem(kvae.NEIGHBORHOODS, "tent", None)  # both are taken away after the test
    monkeypatch.setitem(kvae.MODELS, "bigram", None)
    (tmp_path / "my_images").mkdir()
    for i in range(2):
        shutil.copy(ROOT / ".github" / "codebook_map.png", tmp_path / "my_images" / f"{i}.png")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    names = {"images": images}
    for language, block in BLOCKS:
        if language == "python":
            block = block.replace("configs/photos_vqvae.py", f"{ROOT}/configs/photos_vqvae.py:smoke")
            block = block.replace("steps = 200", "steps = 4")
            exec(compile(block, "README.md", "exec"), names)
    assert names["same"].shape == images.shape
    assert names["codewords"].shape == (16, 32, 64)
    assert names["variables"]["codebook"]["step"] == 1
    assert names["run"].step == 4
    assert names["images"].shape == (2, 32, 32, 3)
    assert names["neighbors"][0] == 117
    assert (tmp_path / "served" / "encode.jax_export").exists()
    assert names["som"].predict(names["X"]).shape == names["y"].shape
    assert names["layer"].spreading.kernel == "tent"
    prior, batch = names["Bigram"](), {"codebook": np.zeros((2, 3, 3), np.int32), "mask": np.array([True, False])}
    zeros = jax.tree.map(np.zeros_like, prior.init(jax.random.key(0), batch, method="loss_and_metrics"))
    np.testing.assert_allclose(prior.apply(zeros, batch, method="loss_and_metrics").loss, np.log(512), rtol=1e-6)


def test_the_other_commands_parse(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    sweeps = re.findall(r"python\s+(launch/sweep\.py\s+--table=[^\n`]*)", TEXT)
    assert len(sweeps) == TEXT.count("launch/sweep.py")
    rows = {"peers": 11, "order": 4, "3": 8, "schedules": 9}
    assert {re.search(r"--table=(\w+)", sweep)[1] for sweep in sweeps} == {*rows}
    for sweep in sweeps:
        command = [sys.executable, *shlex.split(sweep), "--print", f"--runs={tmp_path}"]
        run = subprocess.run(command, capture_output=True, text=True)
        assert len(run.stdout.splitlines()) == rows[re.search(r"--table=(\w+)", sweep)[1]], run.stderr
    report_arguments = shlex.split(re.search(r"python -m kvae\.report ([^\n`]*)", TEXT)[1])
    assert program.run(report.main, report_arguments) == 2  # no runs here yet: said in one line
    assert "runs/photos" in capsys.readouterr().err


def test_commands_name_files_and_fields_that_exist(monkeypatch):
    """Their configs' smoke forms are run by tests/test_main.py."""
    monkeypatch.chdir(ROOT)
    assert len(COMMANDS) == 6
    for command in COMMANDS:
        config, workdir = main.parse(shlex.split(command)[3:])
        assert config["steps"] > 0
        assert workdir.startswith("runs/")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?:launch|\.github|configs)/[^)]*)\)", TEXT))))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


def test_continuous_integration_runs_the_readme_s_own_test_command():
    command = next(block.strip() for language, block in BLOCKS if "pytest" in block)
    install, test = command.split(" && ")
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert test in script
    assert any(line.endswith(install.removeprefix("pip install")) for line in script)
