"""Codes of images, written by `python -m kvae.tokenize`, for a second-stage model."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from annotated_types import Gt, Lt

from kvae.core.errors import InputError, require_extra, wrap_read_errors
from kvae.core.fields import LocalPath, Natural, OneOf
from kvae.core.files import user_path
from kvae.data.dataset import ArrayExamples, Dataset, Example, Examples, fits_in_memory
from kvae.data.numbering import NUMBERINGS, renumber, renumbered
from kvae.data.token_codebooks import codebooks_of
from kvae.data.token_files import RUN_AGAIN, Columns, check_codes, decode_row
from kvae.data.token_manifest import check_shard, columns_of, read_manifest, read_shard


def tokens(
    path: LocalPath,
    validation_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1,
    train_examples: Natural = 0,
    numbering: Annotated[str, OneOf(NUMBERINGS)] = "as_trained",
) -> Dataset:
    """Loads the codes in a folder that `python -m kvae.tokenize` wrote.

    An example maps the name of each codebook to its codes, int32 [h', w'] ([h', w', q] for a quantiser with q
    codebooks). It has a `label` if the images have labels.

    Each file is checked against the digest in `_tokens.json`. A folder too large for memory is read during training,
    and only the number of rows and the first row of each file are checked; `python -m kvae.report --check` checks all
    rows.

    Args:
      path: the folder.
      validation_fraction: fraction of the rows for validation, evenly spaced; used only if the folder has one split.
      train_examples: number of rows for training, evenly spaced; 0 uses all.
      numbering: order of the codes, one of `NUMBERINGS`: "as_trained", or, as a control for the order of a map,
        "shuffled" or "by_components" (sorted along principal components of the codewords). A prior of codes in another
        order cannot be sampled with the tokeniser.

    Raises:
      InputError: the folder does not exist, is incomplete or has fewer than two rows, or a file is corrupted or has
        codes out of range; or `train_examples` is larger than the training set.
    """
    if not path:
        raise InputError("dataset.path is empty; set it to a folder of tokens with --config.dataset.path=DIR")
    root = user_path("dataset.path", path)
    manifest = read_manifest(root)
    sets = {split: _open_split(root, manifest, split) for split in manifest["splits"]}
    if len(sets) == 1:
        (examples,) = sets.values()
        if len(examples) < 2:
            raise InputError(
                f"dataset.path: {root} has {len(examples)} rows; it needs two, one for training and one for validation"
            )
        held_out = max(1, round(validation_fraction * len(examples)))
        is_validation = _evenly_spaced(len(examples), min(held_out, len(examples) - 1))
        sets = {"train": _select(examples, ~is_validation), "validation": _select(examples, is_validation)}
    if empty := [split for split, examples in sets.items() if not len(examples)]:
        raise InputError(f"dataset.path: {root} has no rows in {', '.join(empty)}")
    if train_examples > len(sets["train"]):
        raise InputError(f"dataset.train_examples is {train_examples}; {root} has {len(sets['train'])} training rows")
    if train_examples:
        sets["train"] = _select(sets["train"], _evenly_spaced(len(sets["train"]), train_examples))
    codebooks = codebooks_of(root, manifest)
    if numbering != "as_trained":
        codebooks, numbers = renumbered(codebooks, numbering)
        sets = {split: _renumber(examples, numbers) for split, examples in sets.items()}
    train = sets.pop("train")
    return Dataset(train, sets, tuple(manifest["label_names"]), codebooks)


@dataclasses.dataclass(frozen=True)
class TokenExamples:
    """Rows of ArrayRecord files, read on access. Threads may share them.

    Attributes:
      records: serialised rows, such as grain's `ArrayRecordDataSource`.
      columns: the columns of a row.
      rows: indices of the records, int [n].
      folder: the folder, for messages.
      numbers: new numbers of the codes, see `kvae.data.numbering.renumbered`; {} keeps the written ones.
    """

    records: Sequence[bytes]
    columns: Columns
    rows: np.ndarray
    folder: str
    numbers: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        with wrap_read_errors(self.folder, RUN_AGAIN):
            row = decode_row(self.records[int(self.rows[index])], self.columns)
            for name, size in self.columns.sizes.items():
                check_codes(f"{self.folder}: {name}", row[name][None], size, [row["index"]])
        label = {"label": np.int32(row["label"])} if self.columns.labels else {}
        codes = {name: row[name].astype(np.int32) for name in self.columns.shapes}
        return {**codes, **{name: renumber(codes[name], numbers) for name, numbers in self.numbers.items()}, **label}


def _open_split(root: pathlib.Path, manifest: Mapping[str, Any], split: str) -> Examples:
    """Returns the rows of a split, in memory if they fit, else read on access."""
    columns, shards = columns_of(manifest), manifest["splits"][split]["files"]
    count, size = manifest["splits"][split]["rows"], sum(4 * math.prod(shape) for shape in columns.shapes.values())
    if not fits_in_memory(count * size):
        if manifest["format"] != "array_record":
            raise InputError(
                f"dataset.path: {root} has {count * size / 2**30:.0f} GiB of codes in {manifest['format']} files, "
                "which do not support random access; write the tokens again with --format=array_record"
            )
        for number in range(len(shards)):
            check_shard(root, manifest, split, number)
        with require_extra("train"):
            import grain

        with wrap_read_errors(root, RUN_AGAIN):
            records = grain.sources.ArrayRecordDataSource([str(root / name) for name in shards])
        return TokenExamples(records, columns, np.arange(count), str(root))
    parts = [read_shard(root, manifest, split, name) for name in shards]
    names = [*columns.shapes, *["label"] * columns.labels]
    return ArrayExamples({name: np.concatenate([part[name] for part in parts]).astype(np.int32) for name in names})


def _evenly_spaced(count: int, chosen: int) -> np.ndarray:
    """Returns bool [count], True at `chosen` evenly spaced places."""
    mask = np.zeros(count, bool)
    mask[np.linspace(0, count - 1, chosen).round().astype(int)] = True
    return mask


def _select(examples: Examples, chosen: np.ndarray) -> Examples:
    """Returns the rows where `chosen`, bool [n], is True."""
    if isinstance(examples, ArrayExamples):
        return ArrayExamples(examples[chosen])
    return dataclasses.replace(examples, rows=examples.rows[chosen])


def _renumber(examples: Examples, numbers: Mapping[str, np.ndarray]) -> Examples:
    """Returns the rows with the codes renumbered, see `kvae.data.numbering.renumbered`."""
    if isinstance(examples, ArrayExamples):
        codes = {name: renumber(examples.arrays[name], of_codebook) for name, of_codebook in numbers.items()}
        return ArrayExamples({**examples.arrays, **codes})
    return dataclasses.replace(examples, numbers=numbers)
