"""`python -m kvae.tokenize`: the files it writes, how it resumes, and its messages for mistakes."""

import json
import os
import pathlib
import random
import resource
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import kvae
from kvae.core import program
from kvae.core.errors import InputError
from kvae.data.sets import tokens as module
from kvae.data.token_codebooks import CODEWORDS, write_codewords
from kvae.data.token_manifest import findings
from kvae.runs import Run
from kvae.tokenize import __main__ as tokenize
from kvae.tokenize.encode import is_complete
from kvae.tokenize.of_run import tokenizer_of, with_tokens
from kvae.training.config.sections import load_data
from prior import Prior

ROOT = pathlib.Path(__file__).parents[1]
COUNT = 21
LARGEST_FILE = 70_000  # bytes; shards are larger


@pytest.fixture(scope="module")
def run(trained_run):
    return kvae.load(str(trained_run()))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """21 images in two folders."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("images")
    for i in range(COUNT):
        path = root / ("cats" if i % 3 else "dogs") / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        colours = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((50, 40), Image.Resampling.BICUBIC).save(path)
    return root


def start(*arguments):
    return program.run(tokenize.main, [str(argument) for argument in arguments])


def of_images(run, images, out, *more):
    """Returns the arguments of the command."""
    return [run.workdir, f"--images={images}", f"--out={out}", "--batch-size=8", "--shard-size=10", *more]


def contents(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


@pytest.fixture(scope="module")
def tokens(run, images, tmp_path_factory):
    """The output of an uninterrupted call."""
    out = tmp_path_factory.mktemp("tokens") / "out"
    assert start(*of_images(run, images, out)) == 0
    return out


def test_rows_are_the_codes_of_the_images_in_order(run, images, tokens):
    """As TFDS reads them without kvae; the last batch and the last shard are smaller."""
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    codes = run.encode(run.read_images(images))["codebook"]
    rows = list(tfds.builder_from_directory(str(tokens)).as_data_source("train"))
    assert [row["index"] for row in rows] == list(range(COUNT))
    assert [row["name"].decode() for row in rows] == names
    assert [row["label"] for row in rows] == [int(name.startswith("dogs")) for name in names]
    np.testing.assert_array_equal([row["codebook"] for row in rows], codes)
    assert rows[0]["codebook"].dtype == np.int16
    manifest = json.loads((tokens / "_tokens.json").read_text())
    assert manifest["codebooks"]["codebook"] == {
        "shape": [8, 8], "dtype": "int16", "codebook_size": 32, "grid_shape": [4, 8],
        "topology": "plane", "stride": 4
    }  # fmt: skip
    assert (manifest["step"], manifest["label_names"], list(manifest["digests"])) == (4, ["cats", "dogs"], ["codebook"])
    assert manifest["splits"]["train"]["rows"] == COUNT
    assert [shard["rows"] for shard in manifest["splits"]["train"]["files"].values()] == [10, 10, 1]


def test_codewords_are_stored_with_the_codes(run, tokens, tmp_path):
    """Folders of older versions have none; a file of another codebook is refused."""
    codebook = module.tokens(str(tokens)).codebooks["codebook"]
    assert (codebook.shape, codebook.size, codebook.grid_shape, codebook.topology) == ((8, 8), 32, (4, 8), "plane")
    np.testing.assert_array_equal(codebook.codewords, run.codebooks["codebook"].reshape(32, -1))
    other = shutil.copytree(tokens, tmp_path / "other")
    write_codewords(other, {"codebook": run.codebooks["codebook"] + 1})
    with pytest.raises(InputError, match="its digests differ from the digests of the codes"):
        module.tokens(str(other))
    assert next(text for _, text in findings(str(other)) if text).startswith(f"{other / CODEWORDS} is corrupted")
    (other / CODEWORDS).unlink()
    assert module.tokens(str(other)).codebooks["codebook"].codewords is None


def test_parquet_holds_the_same_rows(run, images, tokens, tmp_path):
    assert start(*of_images(run, images, tmp_path / "out", "--format=parquet")) == 0
    table = pyarrow.parquet.read_table(sorted((tmp_path / "out").glob("train-*.parquet")))
    rows = list(tfds.builder_from_directory(str(tokens)).as_data_source("train"))
    assert table.column_names == ["index", "name", "label", "codebook"]
    assert table["codebook"].type == pyarrow.list_(pyarrow.list_(pyarrow.int16(), 8), 8)
    np.testing.assert_array_equal(table["codebook"].to_pylist(), [row["codebook"] for row in rows])
    assert table["name"].to_pylist() == [row["name"].decode() for row in rows]
    both = [module.tokens(str(folder)) for folder in (tokens, tmp_path / "out")]
    for split in ("train", "validation"):
        examples = [dataset.train if split == "train" else dataset.validation[split] for dataset in both]
        jax.tree.map(np.testing.assert_array_equal, *[examples_of.arrays for examples_of in examples])


@pytest.mark.parametrize("section", [{}, {"name": "digits", "size": 32}])
def test_data_sets_are_encoded_with_both_splits(run, tmp_path, section):
    """The run's own data set, and another one with a field that is set."""
    fields = [f"--dataset{'' if name == 'name' else f'.{name}'}={value}" for name, value in section.items()]
    assert start(run.workdir, f"--out={tmp_path / 'out'}", *fields) == 0
    dataset, _ = load_data({**run.config, "dataset": section or run.config["dataset"]})
    tokens = module.tokens(str(tmp_path / "out"))
    for split, images in (
        (tokens.train, dataset.train),
        (tokens.validation["validation"], dataset.validation["validation"]),
    ):
        assert len(split) == len(images)
        codes = run.encode(images[np.arange(8)]["image"])["codebook"]
        np.testing.assert_array_equal(split[np.arange(8)]["codebook"], codes)


def test_large_token_sets_are_streamed(run, images, tokens, monkeypatch):
    held = module.tokens(str(tokens))
    monkeypatch.setattr("kvae.data.dataset.MEMORY_BYTES", 0)
    streamed = module.tokens(str(tokens))
    assert isinstance(streamed.train, module.TokenExamples)
    for i in range(len(held.train)):
        jax.tree.map(np.testing.assert_array_equal, streamed.train[i], held.train[i])


@pytest.mark.parametrize("file_format", ["array_record", "parquet"])
def test_missing_shards_are_written_again(run, images, tmp_path, capsys, file_format):
    """Intact shards are kept; a partial file of a killed process is deleted."""
    out = tmp_path / "out"
    arguments = of_images(run, images, out, f"--format={file_format}")
    assert start(*arguments) == 0
    complete, first, kept = contents(out), next(out.glob("*00000-of-00003*")), next(out.glob("*00001-of-00003*"))
    before = kept.stat().st_mtime_ns
    first.rename(out / f".{kept.name}.4711")
    assert start(*arguments) == 0
    assert contents(out) == complete
    assert kept.stat().st_mtime_ns == before
    capsys.readouterr()
    assert start(*arguments) == 0
    assert f"{out} is already complete" in capsys.readouterr().err


def test_asking_whether_a_folder_is_complete_creates_nothing(tmp_path):
    assert not is_complete(tmp_path / "new", {"run": "a"})
    assert not (tmp_path / "new").exists()


def test_killed_call_resumes_to_identical_files(run, images, tmp_path):
    more = ["--shard-size=1", "--batch-size=8"]
    uninterrupted, killed = (of_images(run, images, tmp_path / name, *more) for name in ("uninterrupted", "killed"))
    assert start(*uninterrupted) == 0
    out, shards = tmp_path / "killed", random.Random(0).randrange(1, COUNT)
    command = [sys.executable, "-m", "kvae.tokenize", *map(str, killed)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not out.exists() or len(os.listdir(out)) <= shards):
        time.sleep(0.0005)
    process.kill()
    process.wait()
    assert start(*killed) == 0
    assert contents(out) == contents(tmp_path / "uninterrupted")


def test_two_processes_share_the_shards(run, images, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {
        **os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"
    }  # fmt: skip
    arguments = of_images(run, images, tmp_path / "two", "--shard-size=2")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "kvae.tokenize", *arguments],
            cwd=ROOT, env={**environment, "JAX_PROCESS_ID": str(i)}, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert start(*of_images(run, images, tmp_path / "one", "--shard-size=2")) == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_corrupted_image_is_named_or_skipped_on_request(run, images, tokens, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, path in enumerate(sorted(images.rglob("*.png"))):
        (folder / path.name).write_bytes(path.read_bytes()[: 60 if i == 4 else None])
    assert start(*of_images(run, folder, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert error.count("kvae: ") == 1
    assert "not a readable image" in error and "or pass --skip-unreadable" in error
    assert start(*of_images(run, folder, tmp_path / "skipped", "--skip-unreadable")) == 0
    assert "; 1 images skipped" in capsys.readouterr().err
    rows = list(tfds.builder_from_directory(str(tmp_path / "skipped")).as_data_source("train"))
    names = sorted(path.name for path in folder.iterdir())
    corrupted = next(path.name for path in folder.iterdir() if path.stat().st_size == 60)
    assert [row["name"].decode() for row in rows] == [name for name in names if name != corrupted]
    assert [names[row["index"]] for row in rows] == [row["name"].decode() for row in rows]


def test_decode_writes_the_images(run, images, tokens, tmp_path):
    assert start(run.workdir, f"--decode={tokens}", f"--out={tmp_path}", "--batch-size=8") == 0
    names = sorted(path.relative_to(images) for path in images.rglob("*.png"))
    expected = run.decode(run.encode(run.read_images(images)))
    for name, image in zip(names, expected, strict=True):
        decoded = np.asarray(Image.open(tmp_path / "train" / f"{name}.png")).astype(int)
        assert np.max(np.abs(decoded - image)) <= 1


def test_second_stage_model_trains_on_tokens(tokens, tmp_path, monkeypatch):
    monkeypatch.setitem(kvae.MODELS, "prior", Prior)
    config = {
        "steps": 40, "batch_size": 8, "log_every_steps": 20, "evaluate_every_steps": 20, "checkpoint_every_steps": 20,
        "dataset": {"name": "tokens", "path": str(tokens)}, "model": {"name": "prior"},
        "optimizer": {"learning_rate": 0.1},
    }  # fmt: skip
    rows = kvae.train(config, str(tmp_path / "run")).metrics
    assert max(rows[-1]["train/loss"], rows[-1]["valid/loss"]) < np.log(32)  # better than chance, on held-out codes too


def refusals(run, images, tokens, tmp_path):
    """Yields mistakes and their messages."""
    unfinished, empty, no_run = tmp_path / "unfinished", tmp_path / "empty", tmp_path / "no_run"
    for folder in (unfinished, empty, no_run):
        folder.mkdir()
    (unfinished / "tokens.unfinished.json").write_text("{}")
    (no_run / "config.json").write_text((pathlib.Path(run.workdir) / "config.json").read_text())
    here = [run.workdir, f"--out={tmp_path / 'out'}"]
    yield [tmp_path / "none", here[1]], "is not a run: it has no config.json"
    yield [no_run, here[1]], "has no checkpoint yet"
    yield [*here, f"--images={empty}"], "has no images"
    yield [*here, f"--images={tmp_path / 'none'}"], "does not exist; name a folder of images"
    yield [*here, f"--images={images}", "--size=30"], "images are 30 x 30; height and width must be multiples of 4"
    yield [*here, f"--images={images}", "--batch-size=7"], "it must be a multiple of 8 (8 devices)"
    yield [*here, f"--images={images}", "--format=parket"], "did you mean 'parquet'?"
    yield [*here, "--dataset=foto"], "dataset.name is 'foto'"
    yield [*here, "--dataset.path=x"], "has no field 'path'"
    yield [*here, "--data_dir=x"], "'--data_dir=x' is not an option"
    yield [*here, "--dataset=tokens", f"--dataset.path={tokens}"], "has no images, only codebook, label"
    yield [run.workdir, f"--images={images}", f"--out={images}"], "holds other files; choose a new or empty folder"
    yield of_images(run, images, tokens, "--shard-size=5"), "holds tokens made with other arguments: shard_size 10 -> 5"
    yield [*here, f"--decode={unfinished}"], "is incomplete; run the same kvae.tokenize command again"
    yield [*here, f"--decode={empty}"], "is not a folder of tokens: it has no _tokens.json"


def test_mistakes_are_one_line(run, images, tokens, tmp_path, capsys):
    for arguments, message in refusals(run, images, tokens, tmp_path):
        assert start(*arguments) == 2, message
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1 and error.startswith("kvae: "), error
        assert not (tmp_path / "out").exists()


def test_codes_of_another_run_are_refused(run, images, tokens, tmp_path, capsys):
    variables = jax.tree.map(lambda leaf: leaf + 1, run.variables)
    Run(run.workdir, run.config, 2, run.model, variables).save_pretrained(tmp_path / "other")
    other = kvae.from_pretrained(tmp_path / "other")
    assert start(*of_images(other, images, tokens)) == 2
    message = f"holds tokens made with other arguments: run {run.workdir} -> {other.workdir}; step 4 -> 2"
    assert message in capsys.readouterr().err
    assert start(run.workdir, f"--decode={tokens}", f"--out={tokens}") == 2
    assert "is the folder of the codes; choose another --out" in capsys.readouterr().err
    assert start(other.workdir, f"--decode={tokens}", f"--out={tmp_path / 'out'}") == 2
    assert "at step 2 has another codebook" in capsys.readouterr().err


def test_corrupted_files_are_named(tokens, tmp_path):
    for damage, file in ((lambda data: data[: len(data) // 2], "*00000-of-00003"), (lambda _: b"{", "_tokens.json")):
        folder = tmp_path / file.strip("*")
        folder.mkdir()
        for name, data in contents(tokens).items():
            (folder / name).write_bytes(data)
        path = next(folder.glob(file))
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(kvae.InputError, match=f"{path.name} is corrupted"):
            module.tokens(str(folder))


def test_full_disk_is_one_line_and_resumes(run, images, tokens, tmp_path, capsys):
    arguments = of_images(run, images, tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, limits[1]))
    try:
        assert start(*arguments) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be written: " in capsys.readouterr().err.splitlines()[-1]
    assert start(*arguments) == 0
    assert contents(tmp_path / "out") == contents(tokens)


def test_tokens_of_a_run_are_made_once(copy_of_run):
    folder = copy_of_run()
    config = {"dataset": {"name": "tokens", "path": str(folder)}}
    tokens = with_tokens(config)["dataset"]["path"]
    assert tokens == f"{folder}/tokens_4"
    run, dataset = kvae.load(str(folder)), kvae.data.load("tokens", path=tokens)
    images = load_data(run.config)[0].validation["validation"]
    np.testing.assert_array_equal(
        dataset.validation["validation"][3]["codebook"], run.encode(images[3]["image"][None])["codebook"][0]
    )
    written = os.stat(f"{tokens}/_tokens.json").st_mtime_ns
    assert with_tokens(config) == {"dataset": {"name": "tokens", "path": tokens}}
    assert os.stat(f"{tokens}/_tokens.json").st_mtime_ns == written
    of_tokens = {"dataset": {"name": "tokens", "path": tokens}}
    assert with_tokens(of_tokens) is of_tokens
    assert tokenizer_of(Run("prior", of_tokens, 4, run.model, {})) == str(folder)
    with pytest.raises(InputError, match="--tokenizer is missing, and the tokens of the prior are not on this machine"):
        tokenizer_of(run)
