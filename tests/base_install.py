"""Checks an environment that holds the base install of kvae alone; `.ci/run` calls it there, without pytest.

The README's layer blocks run, the layers load none of the extras' packages, the environment stays small, and what needs
an extra says so in one line.
"""

import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tempfile

README = pathlib.Path(__file__).parents[1] / "README.md"
MOST_DISTRIBUTIONS = 36
EXTRAS = {
    "kvae.load('runs/photos')": "train",
    "kvae.read_config('configs/photos_vqvae.py')": "train",
    "kvae.train({}, 'runs/photos')": "train",
    "kvae.data.load('photos')": "train",
    "kvae.from_pretrained('shared')": "train",
    "kvae.from_torch('vqvae.safetensors')": "train",
    "kvae.SOM()": "som",
}
"""Maps what a user may try to the extra that it needs."""

PROGRAMS = {
    "main": ["--config=configs/photos_vqvae.py"],
    "report": ["runs/photos"],
    "tokenize": ["runs/photos", "--out=tokens"],
    "sample": ["runs/prior", "--tokenizer=runs/photos", "--out=samples"],
    "benchmark": ["--config=configs/photos_vqvae.py"],
    "paper": ["--figure=3", "runs/photos"],
}
"""Maps programs, which all need the extra `train`, to arguments."""

HEAVY = {"PIL", "clu", "grain", "kvae.data", "kvae.models", "matplotlib", "ml_collections", "sklearn"}
"""Modules that a layer must not load."""


def layer_blocks() -> list[str]:
    """Returns the README's Python blocks that use a layer and nothing else of kvae."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    needs_extra = re.compile(r"kvae\.(load|train|read_config|from_\w+|SOM|plots|data|MODELS|Model|models)\b|\brun\.")
    return [block for block in blocks if "KohonenVQ" in block and not needs_extra.search(block)]


def check(holds: bool, message: str) -> None:
    """Ends the program with a message unless something holds."""
    if not holds:
        sys.exit(f"base install: {message}")


def main() -> None:
    """Runs every check."""
    installed = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    check(
        len(installed) <= MOST_DISTRIBUTIONS,
        f"{len(installed)} distributions, more than {MOST_DISTRIBUTIONS}: {installed}",
    )
    blocks = layer_blocks()
    check(len(blocks) >= 2, "the README has no linen block or no NNX block")
    names = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    import kvae

    loaded = {name for name in HEAVY if name in sys.modules}
    check(not loaded, f"a layer loads {', '.join(sorted(loaded))}")
    for call, extra in EXTRAS.items():
        try:
            eval(call, {"kvae": kvae})
        except kvae.InputError as error:
            check(f"'.[{extra}]'" in str(error) and "\n" not in str(error), f"{call} says: {error}")
        else:
            check(False, f"{call} asks for no extra")
    with tempfile.TemporaryDirectory() as folder:
        for program, arguments in PROGRAMS.items():
            command = [sys.executable, "-m", f"kvae.{program}", *arguments]
            ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            line = ended.stderr.strip()
            right = ended.returncode == 2 and line.count("\n") == 0 and "'.[train]'" in line
            check(right, f"python -m kvae.{program} ends with {ended.returncode} and says: {line}")
    print(f"base install: {len(installed)} distributions, {len(blocks)} blocks of the README run")


if __name__ == "__main__":
    main()
