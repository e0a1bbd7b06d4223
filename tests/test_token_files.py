"""Folders of tokens that are corrupted, forged, or read by other programs."""

import json
import os
import shutil

import numpy as np
import pandas
import pyarrow
import pyarrow.dataset
import pytest
from pyarrow import parquet

from kvae import data
from kvae.core import program
from kvae.core.digests import digests
from kvae.core.errors import InputError
from kvae.data import token_files, token_manifest
from kvae.report import __main__ as report
from kvae.tokenize import __main__ as tokenize
from kvae.tokenize import encode

COUNTS = (4, 4, 2)
MANIFEST = {
    "run": "runs/one", "step": 4, "replica": 0, "weights": "0", "dataset": {"name": "folder"}, "image_shape": [8, 8, 3],
    "codebooks": {
        "codebook": {"shape": [2, 3], "dtype": "int16", "codebook_size": 32, "grid_shape": [4, 8], "stride": 4}
    },
    "digests": digests({"codebook": np.zeros(3)}), "names": True, "labels": True, "label_names": ["cat", "dog"],
    "skip_unreadable": False, "batch_size": 2, "shard_size": 4, "splits": {"train": {"images": 10, "names": "0"}},
}  # fmt: skip


def write(folder, kind="array_record", codes=None):
    """Writes ten rows in three shards, without a run."""
    folder.mkdir()
    manifest = json.loads(json.dumps({**MANIFEST, "format": kind}))
    columns, form = token_manifest.columns_of(manifest), token_files.FORMATS[kind]
    codes = np.arange(60, dtype=np.int16).reshape(10, 2, 3) % 32 if codes is None else codes
    for i, count in enumerate(COUNTS):
        index = 4 * i + np.arange(count)
        rows = {
            "index": index, "name": [f"{j}.png" for j in index], "label": (index % 2).astype(np.int32),
            "codebook": codes[index],
        }  # fmt: skip
        form.write(folder / form.file_name("train", i, 3), rows, columns)
    encode._finish(folder, columns, manifest)
    return folder


@pytest.fixture(scope="module", params=["array_record", "parquet"])
def intact(request, tmp_path_factory):
    return write(tmp_path_factory.mktemp("tokens") / request.param, request.param)


@pytest.fixture
def tokens(intact, tmp_path):
    return shutil.copytree(intact, tmp_path / "tokens")


def shards(folder):
    return sorted(path for path in folder.iterdir() if "-of-" in path.name)


def refusal(folder, **fields):
    with pytest.raises(InputError) as caught:
        dataset = data.load("tokens", path=str(folder), **fields)
        [dataset.train[i] for i in range(len(dataset.train))]
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("other", [1, 2], ids=["as long", "shorter"])
def test_shard_replaced_by_another_is_refused(tokens, other, capsys):
    first = shards(tokens)[0]
    assert program.run(report.main, ["--check", str(tokens)]) == 0
    shutil.copy(shards(tokens)[other], first)
    assert f"{first.name} is corrupted (its digest differs from the digest in _tokens.json)" in refusal(tokens)
    assert program.run(report.main, ["--check", str(tokens)]) == program.FAILED
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("intact") for line in lines] == [True] * 5 + [False] + [True] * 2
    assert f"{tokens}: {first.name}: {first} is corrupted" in lines[5]


@pytest.mark.parametrize(("other", "message"), [(1, "belongs to shard 1"), (2, "it has 2 rows instead of 4")])
def test_streamed_shard_replaced_by_another_is_refused(intact, tmp_path, monkeypatch, other, message):
    if intact.name == "parquet":
        return
    tokens = shutil.copytree(intact, tmp_path / "tokens")
    monkeypatch.setattr("kvae.data.dataset.MEMORY_BYTES", 0)
    assert len(data.load("tokens", path=str(tokens)).train) == 9
    shutil.copy(shards(tokens)[other], shards(tokens)[0])
    assert message in refusal(tokens)


@pytest.mark.parametrize("memory_bytes", [2**31, 0])
@pytest.mark.parametrize("wrong", [-1, 32, 2**15 - 1])
def test_first_code_out_of_range_is_named(tmp_path, monkeypatch, wrong, memory_bytes):
    monkeypatch.setattr("kvae.data.dataset.MEMORY_BYTES", memory_bytes)
    codes = np.zeros((10, 2, 3), np.int16)
    codes[5, 1, 2] = codes[6] = wrong
    message = refusal(write(tmp_path / "tokens", codes=codes))
    assert f"has the code {wrong} at [1, 2] of row 5; codes must be from 0 to 31" in message


def test_folder_written_earlier_is_read(tokens):
    manifest = json.loads((tokens / "_tokens.json").read_text())
    split = manifest["splits"]["train"]
    split["files"] = {name: shard["rows"] for name, shard in split["files"].items()}
    (tokens / "tokens.json").write_text(json.dumps(manifest))
    (tokens / "_tokens.json").unlink()
    assert len(data.load("tokens", path=str(tokens)).train) == 9
    shutil.copy(shards(tokens)[2], shards(tokens)[0])
    assert "it has 2 rows instead of 4" in refusal(tokens)


def test_other_programs_read_the_folder(tmp_path):
    folder = write(tmp_path / "tokens", "parquet")
    for table in (pandas.read_parquet(folder), parquet.read_table(folder), pyarrow.dataset.dataset(folder).to_table()):
        assert len(table) == 10


@pytest.mark.parametrize("kind", ["fifo", "folder", "missing", "link to nowhere"])
@pytest.mark.parametrize("memory_bytes", [2**31, 0])
def test_what_is_not_a_file_is_refused(tokens, monkeypatch, kind, memory_bytes):
    if tokens.joinpath("features.json").exists():
        monkeypatch.setattr("kvae.data.dataset.MEMORY_BYTES", memory_bytes)
    shard = shards(tokens)[1]
    shard.unlink()
    make = {"fifo": os.mkfifo, "folder": os.mkdir, "missing": str, "link to nowhere": lambda path: path.symlink_to("x")}
    make[kind](shard)
    assert shard.name in refusal(tokens)
    manifest = tokens / "_tokens.json"
    manifest.unlink()
    make[kind](manifest)
    assert str(tokens) in refusal(tokens)


VALUES = [None, 3, -1, "x", [], [1], {}, {"a": 1}, True, 1e300, 10**30, "\0", [None], {"": None}]


def changes(value, path=()):
    """Yields the paths of all values in nested dicts."""
    for name, inner in value.items():
        yield (*path, name)
        if isinstance(inner, dict):
            yield from changes(inner, (*path, name))


def test_forged_manifest_is_one_line_or_harmless(intact, tmp_path):
    tokens = shutil.copytree(intact, tmp_path / "tokens")
    saved = (tokens / "_tokens.json").read_text()
    refused = 0
    for path in changes(json.loads(saved)):
        for value in [KeyError, *VALUES]:
            manifest = section = json.loads(saved)
            for name in path[:-1]:
                section = section[name]
            section.pop(path[-1])
            if value is not KeyError:
                section[path[-1]] = value
            (tokens / "_tokens.json").write_text(json.dumps(manifest))
            try:
                data.load("tokens", path=str(tokens))
            except InputError as error:
                assert str(tokens) in str(error)
                refused += 1
    assert refused > 200


@pytest.mark.parametrize("text", ["", "{", "3", "[]", "null", "[" * 100_000, '"x"', "\xff", '{"splits": 1e999}'])
def test_manifest_that_is_not_a_dict_is_refused(tokens, text):
    (tokens / "_tokens.json").write_bytes(text.encode("latin-1"))
    assert "_tokens.json is corrupted" in refusal(tokens)


def test_shard_must_be_in_its_folder(tokens):
    manifest = json.loads((tokens / "_tokens.json").read_text())
    files = manifest["splits"]["train"]["files"]
    files[f"../{tokens.name}/{shards(tokens)[0].name}"] = files.pop(shards(tokens)[0].name)
    (tokens / "_tokens.json").write_text(json.dumps(manifest))
    assert "is not a plain file name" in refusal(tokens)


COLUMNS = {
    "missing": lambda table: table.drop_columns(["codebook"]),
    "no index": lambda table: table.drop_columns(["index"]),
    "null names": lambda table: table.set_column(1, "name", pyarrow.array([None] * 4, pyarrow.string())),
    "other type": lambda table: table.set_column(3, "codebook", pyarrow.array([1.0] * 4)),
    "flat": lambda table: table.set_column(3, "codebook", pyarrow.array([1] * 4, pyarrow.int16())),
    "null codes": lambda table: table.set_column(3, "codebook", pyarrow.nulls(4, table["codebook"].type)),
    "empty": lambda table: table.slice(0, 0),
}


@pytest.mark.parametrize("change", COLUMNS)
def test_forged_columns_are_one_line(tmp_path, change):
    tokens = write(tmp_path / "tokens", "parquet")
    path, manifest = shards(tokens)[0], json.loads((tokens / "_tokens.json").read_text())
    parquet.write_table(COLUMNS[change](parquet.ParquetFile(path).read()), path)
    manifest["splits"]["train"]["files"][path.name].pop("digest")
    (tokens / "_tokens.json").write_text(json.dumps(manifest))
    assert f"{path} is corrupted (" in refusal(tokens)


def test_second_writer_of_a_folder_is_refused(tmp_path):
    writes = r"another kvae\.tokenize is writing to --out="
    with encode.locked(tmp_path / "new"), pytest.raises(InputError, match=writes), encode.locked(tmp_path / "new"):
        pass
    with encode.locked(tmp_path / "new"):
        assert not [*(tmp_path / "new").iterdir()]


@pytest.mark.parametrize("option", ["--size=100000", "--batch-size=1000000000", "--size=0", "--shard-size=99999999999"])
def test_numbers_out_of_range_are_refused(option, capsys):
    assert program.run(tokenize.main, ["run", "--out=x", "--images=y", option]) == program.MISTAKE
    assert option.partition("=")[2] in capsys.readouterr().err
