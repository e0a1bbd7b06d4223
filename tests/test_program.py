"""What all programs do alike: one line and status 2 for a mistake in arguments, config files and the environment."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

import kvae
from kvae import data, main
from kvae.benchmark import __main__ as benchmark
from kvae.core import program
from kvae.core.errors import InputError, one_line, require_extra
from kvae.core.fields import Count, Positive
from kvae.data import ArrayExamples
from kvae.paper import figures, sweep
from kvae.report import __main__ as report
from kvae.tokenize import __main__ as tokenize

pytestmark = pytest.mark.usefixtures("in_the_project")

SMOKE = "--config=configs/photos_vqvae.py:smoke"


@pytest.mark.parametrize(
    ("own", "arguments", "message"),
    [
        (main.main, [], "--config is missing"),
        (main.main, [SMOKE, "--workdir"], "argument --workdir: expected one argument"),
        (report.main, [], "the following arguments are required: RUNS"),
        (report.main, ["--table=", "x"], "--table is ''; it must be one of 1, 2"),
        (figures.main, ["--figure=77"], "argument --figure: invalid choice: '77'"),
        (sweep.main, ["--table=3", "--dataset=photos", "--seeds=0"], "'0'; it must be an integer, 1 or larger"),
        (sweep.main, ["--table=", "--dataset=photos", "--print"], "--table is ''; it must be one of"),
        (benchmark.benchmark, ["--scaling", "--seconds=nan"], "'nan'; it must be a number, larger than 0"),
        (benchmark.benchmark, [SMOKE, "--random-images=-3"], "'-3'; it must be an integer, 1 or larger"),
    ],
)
def test_every_program_has_one_form_of_an_error(own, arguments, message, capsys):
    assert program.run(own, arguments) == program.MISTAKE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kvae: ") and captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize(
    ("own", "arguments", "name"),
    [
        (tokenize.main, ["runs/a", "--out", "gs://b/tokens"], "--out"),
        (tokenize.main, ["gs://b/run", "--out=tokens", "--images", "gs://b/x"], "--images"),
        (
            tokenize.main,
            ["gs://b/run", "--out=tokens", "--dataset=photos", "--dataset.path=s3://b/x"],
            "--dataset.path",
        ),
        (tokenize.main, ["s3://b/run", "--out=tokens"], "RUN"),
        (report.main, ["gs://b/run", "--curves=gs://b/curves.png"], "--curves"),
        (report.main, ["--check", "hdfs://b/run"], "RUNS"),
        (sweep.main, ["--table=3", "--dataset=photos", "--runs", "gs://b/runs"], "--runs"),
        (main.main, [SMOKE, "--workdir", "s3://b/run"], "--workdir"),
        (
            main.main,
            [SMOKE, "--workdir=gs://b/run", "--config.dataset.data_dir", "gs://b/x"],
            "--config.dataset.data_dir",
        ),
        (main.main, [SMOKE, "--import=gs://b/mine.py"], "--import"),
    ],
)
def test_an_address_where_a_path_must_be_is_one_line(own, arguments, name, capsys):
    assert program.run(own, arguments) == program.MISTAKE
    assert re.match(f"kvae: {name} is .*://b/.*; it must be a path", capsys.readouterr().err)


@pytest.mark.parametrize(
    "arguments", [["gs://b/run"], ["--debug", "gs://b/run"], ["--workdir=gs://b/run"], ["--workdir", "gs://b/run"]]
)
def test_runs_may_lie_in_a_bucket(arguments):
    parser = program.Parser("x", "x")
    parser.add_argument("run", metavar="RUN", nargs="?")
    parser.add_argument("--workdir")
    chosen = parser.parse_args(arguments)
    assert "gs://b/run" in (chosen.run, chosen.workdir)
    # A program that hands on what is of another.
    assert program.Parser("x", "x").parse_known_args(["--workdir", "gs://b/run"])[1] == ["--workdir", "gs://b/run"]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", "", "1e999", str(10**30)])
def test_numbers_among_arguments_have_ranges(text):
    with pytest.raises(InputError, match="it must be an integer, 1 or larger"):
        parser = program.Parser("x", "x")
        parser.add_argument("--n", type=program.number(Count))
        parser.parse_args([f"--n={text}"])


def test_numbers_among_arguments_are_read():
    assert program.number(Count)("3") == 3 and program.number(Positive)("2") == 2.0


CONFIG_FILES = {
    "def get_config(:\n": "it is no Python: invalid syntax, line 1",
    "import nonesuch\n": "ModuleNotFoundError, line 1: No module named 'nonesuch'",
    "def get_config():\n    raise ValueError('a\\nb')\n": "ValueError, line 2: a b",
    "def get_config(): pass\n": "get_config returns None; it must return a ConfigDict",
    "x = 1\n": "has no attribute 'get_config'",
    "raise SystemExit('bye')\n": "SystemExit, line 1: bye",
    "class E(BaseException): pass\nraise E('x')\n": "E, line 2: x",
    "def get_config(): return {1: 2, 'a': {3.5: 4}}\n": "1 is no name of a field; it must be a string",
    "def get_config(): return {'a': {3.5: 4}}\n": "3.5 is no name of a field; it must be a string",
    "\x89PNG\r\n\x00": "it is no Python",
}


@pytest.mark.parametrize("content", CONFIG_FILES)
def test_a_mistake_in_a_config_file_is_one_line_with_its_place(content, tmp_path, capsys):
    path = tmp_path / "config.py"
    path.write_text(content)
    assert program.run(main.main, [f"--config={path}", f"--workdir={tmp_path / 'run'}"]) == program.MISTAKE
    error = capsys.readouterr().err
    assert CONFIG_FILES[content] in error and error.count("\n") == 1


@pytest.mark.parametrize("kind", [os.mkdir, os.mkfifo])
def test_a_config_file_that_is_no_file(kind, tmp_path, capsys):
    kind(tmp_path / "config.py")
    assert program.run(main.main, [f"--config={tmp_path / 'config.py'}"]) == program.MISTAKE
    assert "it is no file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "status", "message"),
    [
        ({"JAX_PLATFORMS": "tpu"}, 2, "Unable to initialize backend 'tpu'"),
        ({"JAX_NUM_CPU_DEVICES": "x"}, 2, "JAX_NUM_CPU_DEVICES"),
        ({"PYTHONWARNINGS": "error"}, 2, "config.batch_size is 3"),
    ],
)
def test_an_environment_that_cannot_be_is_one_line(environment, status, message, tmp_path, data_dir):
    fields = [f"--config.dataset.data_dir={data_dir}", "--config.batch_size=3", "--config.micro_batches=2"]
    command = [sys.executable, "-m", "kvae.main", SMOKE, f"--workdir={tmp_path / 'run'}", *fields]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == status
    lines = [line for line in done.stderr.splitlines() if line.startswith("kvae: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr
    assert message in lines[0] or "batch_size is 3" in lines[0]


def test_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with (
        pytest.raises(InputError, match=r"^grain is not installed: pip install -e '\.\[train\]'$"),
        require_extra("train"),
    ):
        import grain  # noqa: F401


@pytest.mark.parametrize(
    "statement", ["from math import nonesuch", "import kvae.nonesuch", "raise ImportError('libcuda.so is missing')"]
)
def test_other_import_errors_pass_through(statement):
    with pytest.raises(ImportError) as caught, require_extra("train"):
        exec(statement)
    assert not isinstance(caught.value, InputError) and ".[train]" not in str(caught.value)


def test_one_line_is_one_line_of_what_can_be_shown():
    assert one_line("a\nb\tc\u2028d \udcff\x1b[31m") == "a b c d \\udcff\\x1b[31m"


def test_import_makes_known_what_a_file_of_the_user_s_adds(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(kvae.NEIGHBORHOODS, "tent", None)  # taken away after the test
    mine = tmp_path / "mine.py"
    mine.write_text("import kvae\nkvae.NEIGHBORHOODS['tent'] = kvae.NEIGHBORHOODS['hard']\n")
    seen = []
    assert program.run(lambda argv: seen.extend(argv) or 0, [f"--import={mine}", "runs/a"]) == 0
    assert seen == ["runs/a"]
    assert kvae.NEIGHBORHOODS["tent"] is kvae.NEIGHBORHOODS["hard"]
    mine.write_text("import nonesuch\n")
    assert program.run(lambda argv: 0, [f"--import={mine}"]) == 2
    assert "ModuleNotFoundError: No module named 'nonesuch'" in capsys.readouterr().err


def test_a_model_of_images_refuses_a_data_set_without():
    tokens = ArrayExamples({"codebook": np.zeros((2, 4, 4), np.int32), "label": np.zeros(2, np.int32)})
    with pytest.raises(InputError, match="the model takes images, and the data set has none, but codebook, label"):
        data.channel_statistics(tokens)
