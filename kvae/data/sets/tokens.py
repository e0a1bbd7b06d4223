"""Codes of images, written by `python -m kvae.tokenize`, for a second-stage model."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from annotated_types import Gt, Lt

from kvae.core.errors import InputError, choose, require_extra, wrap_read_errors
from kvae.core.fields import LocalPath
from kvae.core.files import user_path
from kvae.data.dataset import ArrayExamples, Dataset, Example, Examples, fits_in_memory
from kvae.data.token_files import FORMATS, RUN_AGAIN, RUN_ALL_AGAIN, Columns, decode_row

MANIFEST = "tokens.json"
"""The file that describes the others in a folder of tokens; written last."""

UNFINISHED = "tokens.unfinished.json"
"""The name of that file until the folder is complete."""


def tokens(path: LocalPath, validation_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1) -> Dataset:
    """The codes in a folder that `python -m kvae.tokenize` wrote.

    An example has the codes of each codebook under its name, int32 [h', w'] ([h', w', q] for a quantiser with q
    codebooks), and `label` if the images have labels.

    Args:
      path: the folder.
      validation_fraction: fraction of the rows for validation, evenly spaced; used only if the folder has one split.

    Raises:
      InputError: there is no such folder, it is not complete, it has fewer than two rows, or a file is corrupted.
    """
    if not path:
        raise InputError("dataset.path is empty; name a folder of tokens with --config.dataset.path=DIR")
    root = user_path("dataset.path", path)
    manifest = read_manifest(root)
    sets = {split: _open_split(root, manifest, split) for split in manifest["splits"]}
    if len(sets) == 1:
        (examples,) = sets.values()
        if len(examples) < 2:
            raise InputError(f"dataset.path: {root} has {len(examples)} rows; it needs two, one of them to validate")
        held_out = max(1, round(validation_fraction * len(examples)))
        validates = np.zeros(len(examples), bool)
        validates[np.linspace(0, len(examples) - 1, min(held_out, len(examples) - 1)).round().astype(int)] = True
        sets = {"train": _select(examples, ~validates), "validation": _select(examples, validates)}
    if empty := [split for split, examples in sets.items() if not len(examples)]:
        raise InputError(f"dataset.path: {root} has no rows in {', '.join(empty)}")
    train = sets.pop("train")
    return Dataset(train, sets, tuple(manifest["label_names"]))


def read_manifest(root: os.PathLike | str) -> dict[str, Any]:
    """Reads the tokens.json of a folder.

    Raises:
      InputError: there is none, or it is corrupted.
    """
    path = pathlib.Path(root) / MANIFEST
    if not path.exists():
        if path.with_name(UNFINISHED).exists():
            raise InputError(f"{root} is not complete; run the same command of kvae.tokenize again to resume it")
        raise InputError(f"{root} holds no tokens: it has no {MANIFEST}; python -m kvae.tokenize writes such folders")
    with wrap_read_errors(path, RUN_ALL_AGAIN):
        manifest = json.loads(path.read_text())
        columns_of(manifest)
        return manifest


def columns_of(manifest: Mapping[str, Any]) -> Columns:
    """Returns the columns of the rows that a manifest describes."""
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
    """Rows of ArrayRecord files, read on access. Threads may share it.

    Attributes:
      records: serialised rows, such as grain's `ArrayRecordDataSource`.
      columns: the columns of a row.
      rows: indices of the records, int [n].
    """

    records: Sequence[bytes]
    columns: Columns
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = decode_row(self.records[int(self.rows[index])], self.columns)
        label = {"label": np.int32(row["label"])} if self.columns.labels else {}
        return {**{name: row[name].astype(np.int32) for name in self.columns.shapes}, **label}


def _open_split(root: pathlib.Path, manifest: Mapping[str, Any], split: str) -> Examples:
    columns, files = columns_of(manifest), manifest["splits"][split]["files"]
    file_format = choose(f"{root / MANIFEST}: format", manifest["format"], FORMATS)
    count, size = sum(files.values()), sum(4 * int(np.prod(shape)) for shape in columns.shapes.values())
    if not fits_in_memory(count * size):
        if manifest["format"] != "array_record":
            raise InputError(
                f"dataset.path: {root} holds {count * size / 2**30:.0f} GiB of codes as {manifest['format']}, which "
                "has no random access; write them with --format=array_record"
            )
        with require_extra("train"):
            import grain

        with wrap_read_errors(root, RUN_AGAIN):
            records = grain.sources.ArrayRecordDataSource([str(root / name) for name in files])
        return TokenExamples(records, columns, np.arange(count))
    parts = [file_format.read(root / name, columns) for name in files]
    names = [*columns.shapes, *["label"] * columns.labels]
    return ArrayExamples({name: np.concatenate([part[name] for part in parts]).astype(np.int32) for name in names})


def _select(examples: Examples, chosen: np.ndarray) -> Examples:
    if isinstance(examples, ArrayExamples):
        return ArrayExamples(examples[chosen])
    return dataclasses.replace(examples, rows=examples.rows[chosen])
