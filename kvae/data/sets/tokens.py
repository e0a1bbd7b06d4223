"""Codes of images instead of images: what `python -m kvae.tokenize` wrote, for a model of the second stage."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from annotated_types import Gt, Lt

from kvae.core.errors import InputError, choose, wrap_read_errors
from kvae.data.dataset import ArrayExamples, Dataset, Example, Examples
from kvae.data.token_files import FOLDER_MADE_ANEW, FORMATS, MADE_ANEW, Columns, row_of

MANIFEST = "tokens.json"
"""The file that says what the others in a folder of tokens are; written last."""

UNFINISHED = "tokens.unfinished.json"
"""What stands there until then."""

MEMORY_BYTES = 2 * 2**30
"""Tokens that take no more than this are held in memory; more of them stay on disk, as ArrayRecords."""


def tokens(path: str, validation_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1) -> Dataset:
    """The codes in a folder that `python -m kvae.tokenize` wrote.

    An example has the codes of each codebook under its name, int32 [h', w'] ([h', w', q] of a quantiser with q
    codebooks), and `label` where the images have one.

    Args:
      path: the folder.
      validation_fraction: about which part of the rows validates, evenly spread, where the folder has one split only.

    Raises:
      InputError: there is no such folder, it is not finished, it has fewer than two rows, or a file is damaged.
    """
    if not path:
        raise InputError("dataset.path is empty; name a folder of tokens with --config.dataset.path=DIR")
    root = pathlib.Path(path).expanduser()
    manifest = read_manifest(root)
    sets = {split: _examples(root, manifest, split) for split in manifest["splits"]}
    if len(sets) == 1:
        (examples,) = sets.values()
        if len(examples) < 2:
            raise InputError(f"dataset.path: {root} has {len(examples)} rows; it takes two, one of them to validate")
        held_out = max(1, round(validation_fraction * len(examples)))
        validates = np.zeros(len(examples), bool)
        validates[np.linspace(0, len(examples) - 1, min(held_out, len(examples) - 1)).round().astype(int)] = True
        sets = {"train": _part(examples, ~validates), "validation": _part(examples, validates)}
    if empty := [split for split, examples in sets.items() if not len(examples)]:
        raise InputError(f"dataset.path: {root} has no rows in {', '.join(empty)}")
    train = sets.pop("train")
    return Dataset(train, sets, tuple(manifest["label_names"]))


def read_manifest(root: os.PathLike | str) -> dict[str, Any]:
    """The contents of a folder's tokens.json.

    Raises:
      InputError: there is none, or it is damaged.
    """
    path = pathlib.Path(root) / MANIFEST
    if not path.exists():
        if path.with_name(UNFINISHED).exists():
            raise InputError(f"{root} is not finished; run the same command of kvae.tokenize again, and it goes on")
        raise InputError(f"{root} holds no tokens: it has no {MANIFEST}; python -m kvae.tokenize makes such folders")
    with wrap_read_errors(path, FOLDER_MADE_ANEW):
        manifest = json.loads(path.read_text())
        columns_of(manifest)
        return manifest


def columns_of(manifest: Mapping[str, Any]) -> Columns:
    """The columns of the rows that a manifest describes."""
    codebooks = manifest["codebooks"]
    return Columns(
        shapes={name: tuple(codebook["shape"]) for name, codebook in codebooks.items()},
        dtypes={name: codebook["dtype"] for name, codebook in codebooks.items()},
        names=manifest["names"],
        labels=manifest["labels"],
        label_names=tuple(manifest["label_names"]),
    )


@dataclasses.dataclass(frozen=True)
class TokenExamples:
    """Rows of ArrayRecords, read when they are asked for. Threads may share it.

    Attributes:
      records: serialised rows, such as grain's `ArrayRecordDataSource`.
      columns: what a row has.
      rows: which of them these examples are, int [n].
    """

    records: Sequence[bytes]
    columns: Columns
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = row_of(self.records[int(self.rows[index])], self.columns)
        label = {"label": np.int32(row["label"])} if self.columns.labels else {}
        return {**{name: row[name].astype(np.int32) for name in self.columns.shapes}, **label}


def _examples(root: pathlib.Path, manifest: Mapping[str, Any], split: str) -> Examples:
    columns, files = columns_of(manifest), manifest["splits"][split]["files"]
    kind = choose(f"{root / MANIFEST}: format", manifest["format"], FORMATS)
    count, size = sum(files.values()), sum(4 * int(np.prod(shape)) for shape in columns.shapes.values())
    if count * size > MEMORY_BYTES:
        if manifest["format"] != "array_record":
            raise InputError(
                f"dataset.path: {root} holds {count * size / 2**30:.0f} GiB of codes as {manifest['format']}, which is "
                "read as a whole; write them with --format=array_record"
            )
        import grain

        with wrap_read_errors(root, MADE_ANEW):
            records = grain.sources.ArrayRecordDataSource([str(root / name) for name in files])
        return TokenExamples(records, columns, np.arange(count))
    parts = [kind.read(root / name, columns) for name in files]
    kept = [*columns.shapes, *["label"] * columns.labels]
    return ArrayExamples({name: np.concatenate([part[name] for part in parts]).astype(np.int32) for name in kept})


def _part(examples: Examples, chosen: np.ndarray) -> Examples:
    if isinstance(examples, ArrayExamples):
        return ArrayExamples(examples[chosen])
    return dataclasses.replace(examples, rows=examples.rows[chosen])
