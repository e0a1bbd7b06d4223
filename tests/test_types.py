"""Type checkers see every public name, and its types."""

import pathlib
import re
import subprocess
import sys

import kvae

USER = pathlib.Path(__file__).parent / "typed" / "user.py"


def test_users_program_names_every_public_name():
    assert {*re.findall(r"kvae\.(\w+)", USER.read_text())} >= {*kvae.__all__}


def test_pyright_accepts_users_program(tmp_path):
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "basic"}')
    (tmp_path / "user.py").write_text(USER.read_text())
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--warnings", "user.py"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
