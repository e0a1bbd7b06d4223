"""Shared runs, in a folder and on the Hugging Face Hub: equal bit for bit, and never pickled."""

import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image, PngImagePlugin

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


def test_shared_run_equals_the_original_bit_for_bit(run, shared):
    other = kvae.from_pretrained(shared)
    assert_same(run, other)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(other.encode(images)["codebook"], run.encode(images)["codebook"])
    assert other.metrics == run.metrics
    other.save_pretrained(shared.with_name("again"))
    again = {path.name: path.read_bytes() for path in shared.with_name("again").iterdir() if path.is_file()}
    assert again["model.safetensors"] == (shared / "model.safetensors").read_bytes()


def test_shared_files_hold_no_local_path(run, shared):
    assert {path.name for path in shared.iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
        "metrics.jsonl",
    }
    data_dir = run.config["dataset"]["data_dir"]
    assert not any(data_dir in path.read_text(errors="replace") for path in shared.iterdir())


def test_card_has_metrics_and_code_that_runs(run, shared, tmp_path):
    card = (shared / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: kvae\n")
    assert "| codebook | 32 | 4 x 8 | 4 x 4 px |" in card
    psnr = run.metrics[-1]["valid/psnr"][1]
    assert f"| PSNR (dB) | {psnr:.1f} |" in card
    used, vectors = (run.metrics[-1][f"valid/{name}"][1] for name in ("codes_used", "vectors"))
    assert f"| codes used | {used} (N = {vectors:,}) |" in card
    block = card.split("```python\n")[1].split("```")[0]
    assert 'kvae.from_pretrained("mine")' in block
    folder = tmp_path / "a_folder"
    folder.mkdir()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(folder / "a.png")
    shutil.copytree(shared, tmp_path / "mine")
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        exec(block, names)
    assert names["decoded"].shape == (1, 32, 32, 3)


def test_figures_with_images_are_shared_only_if_asked(copy_of_run, tmp_path):
    workdir, shared = copy_of_run(replicas=2), tmp_path / "shared"
    (workdir / "figures").mkdir()
    safe, private = ["curves", "hit_map_top", "u_matrix"], ["codebook_map", "mean_images", "mine", "reconstructions"]
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", "Training up to step 4")
    texts.add_text("Description", "Bold: validation.")
    for name in safe + private:
        Image.new("RGB", (8, 8)).save(workdir / "figures" / f"{name}.png", pnginfo=texts if name == "curves" else None)
    run = kvae.load(str(workdir))
    for images, names in ((True, sorted(safe + private)), (False, safe)):
        run.save_pretrained(shared, images=images)
        assert sorted(path.stem for path in shared.glob("figures/*")) == names
        card = (shared / "README.md").read_text()
        assert all((f"figures/{name}.png" in card) == (name in names) for name in safe + private)
        assert card.index("codebook_map.png" if images else "u_matrix.png") < card.index("## Use")
    captioned = "![Training up to step 4](figures/curves.png)\n\n*Training up to step 4. Bold: validation.*\n"
    assert captioned in card and "![U-matrix](figures/u_matrix.png)\n\n*U-matrix.*\n" in card
    assert (shared / "figures" / "curves.png").read_bytes() == (workdir / "figures" / "curves.png").read_bytes()


def test_card_has_licence_parameters_images_and_limits(run, tmp_path):
    run.save_pretrained(tmp_path / "a", license="cc-by-4.0")
    card, batch = (tmp_path / "a" / "README.md").read_text(), run.config["batch_size"]
    assert card.startswith("---\nlibrary_name: kvae\nlicense: cc-by-4.0\ntags:")
    count = sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"]))
    assert (
        f"4 steps of {batch} images, {4 * batch} in total, counting repetitions. {count:,} trained parameters." in card
    )
    assert "| metric | value |" in card and "mean (" not in card
    assert "multiples of 4 pixels" in card and "## Licence\n\n`cc-by-4.0`" in card
    for license in ("a\nb: c", "", 3):
        with pytest.raises(InputError, match="it must be a licence identifier such as"):
            run.save_pretrained(tmp_path / "a", license=license)


def test_from_pretrained_rejects_corrupted_and_foreign_files(run, shared, tmp_path):
    def changed(name, weights=None, **config):
        folder = tmp_path / name
        shutil.copytree(shared, folder)
        if config:
            saved = json.loads((folder / "config.json").read_text())
            saved["model"] |= config
            (folder / "config.json").write_text(json.dumps(saved))
        if weights is not None:
            path = folder / "model.safetensors"
            path.write_bytes(weights(path.read_bytes()))
        return folder

    def flipped(data):
        return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]

    def foreign(_):
        return safetensors.numpy.save({"encoder.weight": np.zeros(3, np.float32)})

    for folder, message in [
        (
            changed("truncated", lambda data: data[: len(data) // 2]),
            "truncated/model.safetensors is not a readable safetensors file",
        ),
        (changed("flipped", flipped), r"is corrupted: the checksum of .* differs; copy or download it again"),
        (changed("wider", channels=16), r"has the shape \[.*\]; this model expects \[.*\]"),
        (changed("foreign", foreign), "lacks .*in this model|, which this model does not have"),
        (pathlib.Path(run.workdir), r"has no model\.safetensors; it is a run folder; open it with kvae\.load"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            kvae.from_pretrained(folder)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"is a shared run; open it with kvae\.from_pretrained"):
        kvae.load(shared)


def test_save_and_export_refuse_a_folder_with_other_files(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for write in (run.save_pretrained, run.export):
        for folder in (run.workdir, tmp_path / "mine"):
            with pytest.raises(InputError, match=r"holds other files .*; choose a new or empty folder"):
                write(folder)
        with pytest.raises(InputError, match="cannot be written"):
            write(tmp_path / "file")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["README.md"]


def forget_hub(monkeypatch):
    """Makes the next use of the Hub import `kvae.runs.hub` again."""
    monkeypatch.delitem(sys.modules, "kvae.runs.hub", raising=False)
    monkeypatch.delattr("kvae.runs.hub", raising=False)


@pytest.mark.filterwarnings("ignore")  # of the Hub's client
def test_run_is_uploaded_and_downloaded(run, tmp_path, monkeypatch):
    for name in [
        name for name in sys.modules if name.partition(".")[0] == "huggingface_hub" or name == "kvae.runs.hub"
    ]:
        monkeypatch.delitem(sys.modules, name)  # the client reads its address when it is imported
    with hub_stub.serving() as hub:
        for name, value in {
            "HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_of_a_test", "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        url = run.push_to_hub("somebody/tokens", private=True, license="mit")
        downloaded = kvae.from_pretrained("somebody/tokens", cache_dir=tmp_path / "cache")
        with pytest.raises(
            InputError, match=r"^forbidden/tokens was not uploaded: the Hub rejected it or did not respond"
        ):
            run.push_to_hub("forbidden/tokens")
        with pytest.raises(InputError, match=r"^somebody/none is not a local folder, and the Hub"):
            kvae.from_pretrained("somebody/none", cache_dir=tmp_path / "cache")
        files = hub.repositories["somebody/tokens"]
    assert url.endswith(f"/somebody/tokens/commit/{hub_stub.COMMIT}")
    assert_same(run, downloaded)
    assert {"model.safetensors", "config.json", "README.md", "metrics.jsonl"} <= files.keys()
    assert b'kvae.from_pretrained("somebody/tokens")' in files["README.md"]


def test_missing_hub_client_is_named_with_its_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    forget_hub(monkeypatch)
    for call in (lambda: run.push_to_hub("a/b"), lambda: kvae.from_pretrained("a/b")):
        with pytest.raises(InputError, match=r"huggingface_hub is not installed: pip install -e '\.\[hub\]'"):
            call()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nonexistent/model", "/nonexistent/model does not exist; pass a folder, or user/name for a run on the"),
        ("./a/b", "a/b does not exist; pass a folder"),
        ("shared", "shared does not exist; pass a folder"),
        (pathlib.Path("a/b"), "a/b does not exist; pass a folder"),
        (__file__, "test_share.py is a file; pass the folder that contains model.safetensors"),
        ("https://huggingface.co/somebody/tokens", "pass the name of the repository, 'somebody/tokens'"),
        ("https://huggingface.co/somebody/tokens/tree/main", "pass the name of the repository, 'somebody/tokens'"),
        ("hf://somebody/tokens", "pass the name of the repository, 'somebody/tokens'"),
    ],
)
def test_missing_shared_runs_are_named(name, message):
    with pytest.raises(InputError) as error:
        kvae.from_pretrained(name)
    assert message in str(error.value)
    assert "huggingface_hub" not in str(error.value) and "mount" not in str(error.value)
