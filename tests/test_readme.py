"""Every block of every page runs, every command parses, and every link leads somewhere."""

import pathlib
import re
import shlex
import shutil

import jax
import numpy as np
import pytest

import kvae
from kvae import main, sample
from kvae.paper import sweep
from kvae.tokenize import __main__ as tokenize
from kvae.training.train import train

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("kvae", "configs", "launch", ".github")
PAGES = ["README.md", *sorted(p.relative_to(ROOT).as_posix() for f in FOLDERS for p in (ROOT / f).rglob("*.md"))]
README = (ROOT / "README.md").read_text()
REGISTRIES = (kvae.NEIGHBORHOODS, kvae.GRIDS, kvae.QUANTIZERS, kvae.MODELS, kvae.DATASETS)


def blocks_of(page, language):
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands_of(page):
    """Returns the `python -m kvae...` commands of a page, in blocks or between backticks."""
    return re.findall(r"python -m (kvae\.\w+[^\n`]*)", (ROOT / page).read_text())


@pytest.fixture
def registries(monkeypatch):
    """Takes what a page adds to kvae's dicts away again."""
    from kvae.models.autoencoders.augmentations import AUGMENTATIONS
    from kvae.training.optimizer import OPTIMIZERS, SCHEDULES

    dicts = (*REGISTRIES, AUGMENTATIONS, OPTIMIZERS, SCHEDULES)
    before = [dict(entries) for entries in dicts]
    yield
    for entries, kept in zip(dicts, before, strict=True):
        entries.clear()
        entries.update(kept)


@pytest.fixture(scope="module")
def folder(make_config, tmp_path_factory):
    """A folder with what the pages expect: a trained run, images, and tokens in both formats."""
    folder = tmp_path_factory.mktemp("reader")
    fields = {"model.quantizer.grid_shape": (16, 32), "model.embedding_dim": 3}
    train(make_config(steps=4, evaluate_every_steps=4, **fields), str(folder / "runs" / "photos"), jax.devices()[:1])
    (folder / "my_images").mkdir()
    for i in range(2):
        shutil.copy(ROOT / ".github" / "codebook_map.png", folder / "my_images" / f"{i}.png")
    for out, options in {"tokens": [], "tokens_parquet": ["--format=parquet"]}.items():
        images = [f"{folder}/runs/photos", f"--images={folder}/my_images"]
        assert tokenize.main([*images, f"--out={folder}/{out}", *options]) == 0
    config, _ = main.parse([f"--config={ROOT}/configs/tokens_prior.py:smoke"])
    config["dataset"] = {"name": "tokens", "path": f"{folder}/tokens", "validation_fraction": 0.5}
    train(config, str(folder / "runs" / "prior"), jax.devices()[:1])
    return folder


def test_readme_is_short():
    assert README.count("\n") <= 150
    assert len(README.encode()) <= 9 * 1024


def test_pages_are_short_and_linked_once():
    for page in PAGES:
        if page != "README.md" and not page.startswith("configs/"):
            assert (ROOT / page).read_text().count("\n") <= 200, page
            assert README.count(f"]({page})") == 1, page


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page, "python")])
def test_python_blocks_run(page, folder, registries, monkeypatch, data_dir):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
    names = {}
    for block in blocks_of(page, "python"):
        block = block.replace("configs/photos_vqvae.py", f"{ROOT}/configs/photos_vqvae.py:smoke")
        exec(compile(re.sub(r"steps = 200\b", "steps = 4", block), page, "exec"), names)
    if page == "README.md":
        assert names["decoded"].shape == names["images"].shape == (2, 32, 32, 3)
        assert names["codewords"].shape == (16, 32, 3)
        assert names["variables"]["codebook"]["KohonenVQ_0"]["step"] == 1
        assert names["run"].step == 4
        assert names["neighbors"][0] == 117
        assert (folder / "served" / "encode.jax_export").exists()
        assert names["som"].predict(names["X"]).shape == names["y"].shape
    if page == "kvae/quantizers/README.md":
        assert names["tent"].spreading.kernel == "tent"
        np.testing.assert_array_equal(names["king"].spreading.grid.distance(0, np.array([1, 32, 33, 66])), [1, 1, 1, 2])
    if page == "kvae/models/README.md":
        prior, batch = names["Bigram"](), {"codebook": np.zeros((2, 3, 3), np.int32), "mask": np.array([True, False])}
        zeros = jax.tree.map(np.zeros_like, prior.init(jax.random.key(0), batch, method="loss_and_metrics"))
        np.testing.assert_allclose(prior.apply(zeros, batch, method="loss_and_metrics").loss, np.log(512), rtol=1e-6)


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)])
def test_commands_parse(page, monkeypatch, folder):
    monkeypatch.chdir(ROOT)
    for command in commands_of(page):
        program, *arguments = shlex.split(command, comments=True)
        arguments = [a for a in arguments if not a.startswith("--import")]
        if program == "kvae.main" and any(a.startswith("--config=configs") for a in arguments):
            config, workdir = main.parse([a for a in arguments if not re.search("bigram|walks|--help|=FILE", a)])
            assert config["steps"] > 0
            assert workdir.startswith("runs/")
        elif program == "kvae.sample" and len(arguments) > 1:
            assert sample.parse(arguments).out
        elif program == "kvae.tokenize" and len(arguments) > 1:
            options, _ = tokenize.parse(arguments)
            assert options.out


@pytest.mark.parametrize("page", [page for page in PAGES if "launch/sweep.py" in (ROOT / page).read_text()])
def test_sweeps_name_settings_that_exist(page, tmp_path, monkeypatch, capsys):
    """Each sweep of a page lists its commands."""
    monkeypatch.chdir(ROOT)
    for arguments in re.findall(r"python launch/sweep\.py (--table=[^\n`]*)", (ROOT / page).read_text()):
        assert sweep.main([*shlex.split(arguments), "--print", f"--runs={tmp_path}"]) == 0
        assert capsys.readouterr().out.count("kvae.main") >= 3


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for path in re.findall(r"\]\((?!https?:|#)([^)#]*)[^)]*\)|src=\"(?!https?:|data:)([^\"]*)\"", text):
        target = (ROOT / page).parent / (path[0] or path[1])
        assert target.resolve().exists(), path


def test_blocks_are_of_known_languages():
    for page in PAGES:
        languages = re.findall(r"^```(\w*)\n.*?^```$", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
        assert {*languages} <= {"bash", "python"}, page


def test_ci_runs_the_readmes_test_command():
    (command,) = [block.strip() for block in blocks_of("README.md", "bash") if "pytest" in block]
    install, test = command.split(" && ")
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert test in script
    assert any(
        line.startswith("pip install") and line.endswith(install.removeprefix("pip install ")) for line in script
    )
