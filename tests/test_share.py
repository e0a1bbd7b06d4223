"""A run as files for others: equal bit for bit, without pickle, by folder and by Hugging Face's hub."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import hub_stub
import kvae
from kvae.core.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(trained_run):
    return kvae.load(str(trained_run(replicas=2)), replica=1)


@pytest.fixture(scope="module")
def shared(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared") / "mine"
    run.save_pretrained(folder)
    return folder


def assert_same(run, other):
    assert jax.tree.structure(run.variables) == jax.tree.structure(other.variables)
    for one, two in zip(jax.tree.leaves(run.variables), jax.tree.leaves(other.variables), strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (two.dtype, two.shape, two.tobytes())
    assert (other.step, other.replica, other.model) == (run.step, run.replica, run.model)


def test_what_is_opened_is_what_was_saved_bit_for_bit(run, shared):
    other = kvae.from_pretrained(shared)
    assert_same(run, other)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(other.encode(images)["codebook"], run.encode(images)["codebook"])
    assert other.metrics == run.metrics
    other.save_pretrained(shared.with_name("again"))
    again = {path.name: path.read_bytes() for path in shared.with_name("again").iterdir() if path.is_file()}
    assert again["model.safetensors"] == (shared / "model.safetensors").read_bytes()


def test_the_files_are_safetensors_json_and_text_and_hold_no_path_of_this_machine(run, shared):
    assert {path.name for path in shared.iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
        "metrics.jsonl",
    }
    data_dir = run.config["dataset"]["data_dir"]
    assert not any(data_dir in path.read_text(errors="replace") for path in shared.iterdir())


def test_the_card_says_what_it_is_how_good_and_how_to_open_it(run, shared, tmp_path):
    card = (shared / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: kvae\n")
    assert "| codebook | 32 | 4 x 8 | 4 x 4 px |" in card
    psnr = run.metrics[-1]["valid/psnr"][1]
    assert f"| PSNR (dB) | {psnr:.1f} |" in card
    # Its lines of Python run.
    block = card.split("```python\n")[1].split("```")[0]
    assert 'kvae.from_pretrained("mine")' in block
    folder = tmp_path / "a_folder"
    folder.mkdir()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(folder / "a.png")
    shutil.copytree(shared, tmp_path / "mine")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        exec(block, found)
    assert found["same"].shape == (1, 32, 32, 3)


def test_pictures_of_the_first_replica_go_along(copy_of_run, tmp_path):
    workdir = copy_of_run(replicas=2)
    (workdir / "figures").mkdir()
    Image.new("RGB", (8, 8)).save(workdir / "figures" / "curves.png")
    kvae.load(str(workdir)).save_pretrained(tmp_path / "shared")
    assert "![Curves](figures/curves.png)" in (tmp_path / "shared" / "README.md").read_text()
    copied = tmp_path / "shared" / "figures" / "curves.png"
    assert copied.read_bytes() == (workdir / "figures" / "curves.png").read_bytes()


def test_damaged_and_foreign_files_are_told_in_one_line(run, shared, tmp_path):
    def changed(name, weights=None, **config):
        folder = tmp_path / name
        shutil.copytree(shared, folder)
        if config:
            said = json.loads((folder / "config.json").read_text())
            said["model"] |= config
            (folder / "config.json").write_text(json.dumps(said))
        if weights is not None:
            path = folder / "model.safetensors"
            path.write_bytes(weights(path.read_bytes()))
        return folder

    def flipped(data):
        return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]

    def foreign(_):
        return safetensors.numpy.save({"encoder.weight": np.zeros(3, np.float32)})

    for folder, message in [
        (changed("truncated", lambda data: data[: len(data) // 2]), "truncated/model.safetensors is not readable"),
        (changed("flipped", flipped), "has not the digest that was saved; get it again"),
        (changed("wider", channels=16), r"is \[.*\]; the model takes \[.*\] there"),
        (changed("foreign", foreign), "lacks .*in this model|, and this model has not"),
        (pathlib.Path(run.workdir), r"has no model\.safetensors; it is the folder of a run, which kvae\.load opens"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            kvae.from_pretrained(folder)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"is a shared run; kvae\.from_pretrained opens it"):
        kvae.load(shared)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    for write in (run.save_pretrained, run.export):
        for folder in (run.workdir, tmp_path / "mine"):
            with pytest.raises(InputError, match=r"holds other files .*; choose a folder that is new or empty"):
                write(folder)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["README.md"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be written"):
        run.save_pretrained(tmp_path / "file")


def test_a_run_goes_to_the_hub_and_comes_back(run, tmp_path):
    """In a process of its own, for the hub's client reads its address once."""
    code = """
import sys, jax, kvae
workdir, cache = sys.argv[1:]
run = kvae.load(workdir, replica=1)
print(run.push_to_hub("somebody/tokens", private=True))
other = kvae.from_pretrained("somebody/tokens", cache_dir=cache)
assert jax.tree.all(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), run.variables, other.variables))
print(other.step, other.replica)
for call in (lambda: run.push_to_hub("forbidden/tokens"), lambda: kvae.from_pretrained("somebody/none")):
    try:
        call()
    except kvae.InputError as error:
        print(error)
"""
    with hub_stub.serving() as hub:
        environment = {
            **os.environ, "HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_of_a_test", "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONWARNINGS": "ignore",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code, run.workdir, str(tmp_path / "cache")],
            capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        pushed = hub.repositories["somebody/tokens"]
    address, opened, forbidden, none = done.stdout.splitlines()
    assert address.endswith(f"/somebody/tokens/commit/{hub_stub.COMMIT}")
    assert opened == "4 1"
    assert forbidden.startswith("forbidden/tokens is not pushed: the hub refuses or does not answer; ")
    assert none.startswith("somebody/none is no folder here, and the hub")
    assert {"model.safetensors", "config.json", "README.md", "metrics.jsonl"} <= pushed.keys()
    assert b'kvae.from_pretrained("somebody/tokens")' in pushed["README.md"]


def test_without_the_hub_s_client_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "kvae.runs.hub", raising=False)
    for call in (lambda: run.push_to_hub("a/b"), lambda: kvae.from_pretrained("a/b")):
        with pytest.raises(InputError, match=r"pip install -e '\.\[hub\]'"):
            call()
