"""Mistakes in arguments, config files and the environment are one line and status 2 in every program."""

import os
import pathlib
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
from kvae.core.files import replaced
from kvae.data import ArrayExamples
from kvae.paper import figures, pixel_map, sweep
from kvae.report import __main__ as report
from kvae.tokenize import __main__ as tokenize

pytestmark = pytest.mark.usefixtures("in_the_project")

SMOKE = "--config=configs/photos_vqvae.py:smoke"


@pytest.mark.parametrize(
    ("program_main", "arguments", "message"),
    [
        (main.main, [], "--config is missing"),
        (main.main, [SMOKE, "--workdir"], "argument --workdir: expected one argument"),
        (report.main, [], "the following arguments are required: RUNS"),
        (report.main, ["--table=", "x"], "--table is ''; it must be one of 1, 2"),
        (figures.main, ["--figure=77"], "argument --figure: invalid choice: '77'"),
        (sweep.main, ["--table=3", "--dataset=photos", "--seeds=0"], "'0'; it must be an integer >= 1"),
        (sweep.main, ["--table=", "--dataset=photos", "--print"], "--table is ''; it must be one of"),
        (benchmark.main, ["--scaling", "--seconds=nan"], "'nan'; it must be a number > 0"),
        (pixel_map.main, ["--config=configs/photos_vqvae.py"], "'vqvae', which has no grid_shape"),
        (benchmark.main, [SMOKE, "--random-images=-3"], "'-3'; it must be an integer from 1 to 4096"),
    ],
)
def test_every_program_reports_a_mistake_as_one_line(program_main, arguments, message, capsys):
    assert program.run(program_main, arguments) == program.MISTAKE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kvae: ") and captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize(
    ("program_main", "arguments", "name"),
    [
        (tokenize.main, ["s3://b/run", "--out=tokens"], "the run"),
        (report.main, ["--check", "hdfs://b/run"], "the folder of runs"),
        (report.main, ["RUN", "--out=gs://b/page.html"], "--out"),
        (sweep.main, ["--table=3", "--dataset=photos", "--runs", "gs://b/runs"], "--runs"),
        (main.main, [SMOKE, "--workdir", "s3://b/run"], "--workdir"),
    ],
)
def test_address_of_a_store_is_refused(program_main, arguments, name, capsys):
    assert program.run(program_main, arguments) == program.MISTAKE
    assert re.match(f"kvae: {name} is .*://b/.*; it must be a path", capsys.readouterr().err)


@pytest.mark.parametrize("convert", [str, pathlib.Path])
def test_files_are_never_written_to_a_folder_called_gs(convert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"the file is gs:/.*; it must be a path"), replaced(convert("gs://b/a.png")):
        pass
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", "", "1e999", str(10**30)])
def test_number_arguments_have_ranges(text):
    with pytest.raises(InputError, match="it must be an integer >= 1"):
        parser = program.Parser("x", "x")
        parser.add_argument("--n", type=program.number(Count))
        parser.parse_args([f"--n={text}"])


def test_number_arguments_are_read():
    assert program.number(Count)("3") == 3 and program.number(Positive)("2") == 2.0


CONFIG_FILES = {
    "def get_config(:\n": "it is not valid Python: invalid syntax, line 1",
    "import nonesuch\n": "ModuleNotFoundError, line 1: No module named 'nonesuch'",
    "def get_config():\n    raise ValueError('a\\nb')\n": "ValueError, line 2: a b",
    "def get_config(): pass\n": "get_config returns None; it must return a ConfigDict",
    "x = 1\n": "has no attribute 'get_config'",
    "raise SystemExit('bye')\n": "SystemExit, line 1: bye",
    "class E(BaseException): pass\nraise E('x')\n": "E, line 2: x",
    "def get_config(): return {1: 2, 'a': {3.5: 4}}\n": "a field is named 1; names must be strings",
    "def get_config(): return {'a': {3.5: 4}}\n": "a field is named 3.5; names must be strings",
    "\x89PNG\r\n\x00": "it is not valid Python",
}


@pytest.mark.parametrize("content", CONFIG_FILES)
def test_config_file_mistake_is_one_line_with_its_place(content, tmp_path, capsys):
    path = tmp_path / "config.py"
    path.write_text(content)
    assert program.run(main.main, [f"--config={path}", f"--workdir={tmp_path / 'run'}"]) == program.MISTAKE
    error = capsys.readouterr().err
    assert CONFIG_FILES[content] in error and error.count("\n") == 1


@pytest.mark.parametrize("kind", [os.mkdir, os.mkfifo])
def test_config_file_must_be_a_file(kind, tmp_path, capsys):
    kind(tmp_path / "config.py")
    assert program.run(main.main, [f"--config={tmp_path / 'config.py'}"]) == program.MISTAKE
    assert "it is not a file" in capsys.readouterr().err


def test_missing_jax_platform_is_one_line():
    code = (
        "import sys; from kvae.core import program; import jax; sys.exit(program.run(lambda argv: jax.devices(), []))"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "tpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == program.MISTAKE
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("kvae: ")]
    assert "Unable to initialize backend 'tpu'" in line and "Traceback" not in done.stderr


def test_other_runtime_errors_keep_their_traceback():
    def fail(argv):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        program.run(fail, [])


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


def test_one_line_is_printable():
    assert one_line("a\nb\tc\u2028d \udcff\x1b[31m") == "a b c d \\udcff\\x1b[31m"


@pytest.mark.parametrize("form", ["--import={}", "--import {}"])
def test_import_runs_a_file_of_the_user(form, tmp_path, monkeypatch):
    monkeypatch.setitem(kvae.NEIGHBORHOODS, "tent", None)  # removed after the test
    mine, rest = tmp_path / "mine.py", []
    mine.write_text("import kvae\nkvae.NEIGHBORHOODS['tent'] = kvae.NEIGHBORHOODS['hard']\n")
    assert program.run(lambda argv: rest.extend(argv) or 0, [*form.format(mine).split(" "), "runs/a"]) == 0
    assert rest == ["runs/a"]
    assert kvae.NEIGHBORHOODS["tent"] is kvae.NEIGHBORHOODS["hard"]


def test_import_reports_a_failing_or_missing_file(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text("import nonesuch\n")
    for arguments, message in [
        ([f"--import={mine}"], "ModuleNotFoundError: No module named 'nonesuch'"),
        ([f"--import={mine}x"], "there is no such file"),
        (["--import"], "--import needs a file"),
    ]:
        assert program.run(lambda argv: 0, arguments) == program.MISTAKE
        assert message in capsys.readouterr().err


def test_model_of_images_refuses_a_data_set_without_images():
    tokens = ArrayExamples({"codebook": np.zeros((2, 4, 4), np.int32), "label": np.zeros(2, np.int32)})
    with pytest.raises(InputError, match="the examples of this data set have only codebook, label; choose another"):
        data.channel_statistics(tokens)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TABLES = {", "SyntaxError: "),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('no')", "SystemExit: no"),
        ("import nonesuch", "ModuleNotFoundError: No module named 'nonesuch'"),
        ("\0", ": source code string cannot contain null bytes"),
        ("BASE, SETTINGS = {}, {}", "has no dict TABLES; write a file like kvae/paper/experiments.py"),
        ("BASE, SETTINGS, TABLES = {}, {}, []", "has no dict TABLES"),
    ],
)
def test_files_of_experiments_that_fail_are_one_line(tmp_path, capsys, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    for program_main, arguments in (
        (report.main, ["--table=3", str(tmp_path)]),
        (sweep.main, ["--table=3", "--dataset=photos", "--print"]),
        (figures.main, ["--figure=6", str(tmp_path)]),
    ):
        assert program.run(program_main, [*arguments, f"--experiments={file}"]) == program.MISTAKE
        error = capsys.readouterr().err
        assert f"--experiments={file}" in error and message in error and error.count("\n") == 1
    with pytest.raises(InputError, match=": it is not a file"):
        program.run_file("--import", str(tmp_path))


def test_missing_platform_of_jax_is_one_line(monkeypatch, capsys):
    def assert_plugin(argv):
        exec("assert False", {"__name__": "jax._src.xla_bridge"})

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert program.run(assert_plugin, []) == program.MISTAKE
    error = capsys.readouterr().err
    assert "kvae: JAX does not start with the environment {" in error and "'JAX_PLATFORMS': 'cuda'" in error
    assert error.endswith("this platform is not available\n")
    with pytest.raises(AssertionError):
        program.run(lambda argv: exec("assert False", {"__name__": "kvae.nonesuch"}), [])
