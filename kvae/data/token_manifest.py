"""The file that describes a folder of tokens: its schema, and what it says about each shard."""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
from annotated_types import Len

from kvae.core import files
from kvae.core.errors import InputError, short_repr, wrap_read_errors
from kvae.core.fields import Count, Counts, Natural, OneOf, validate, validate_fields
from kvae.data.token_files import FORMATS, RUN_AGAIN, RUN_ALL_AGAIN, Columns, TokenRows, check_codes

log = logging.getLogger(__name__)

MANIFEST = "_tokens.json"
"""The file that describes the others in a folder of tokens; written last. Readers of Parquet folders skip names with an
underscore."""

UNFINISHED = "_tokens.unfinished.json"
"""The name of that file until the folder is complete."""

EARLIER = {MANIFEST: "tokens.json", UNFINISHED: "tokens.unfinished.json"}
"""The former names of these files; folders that have them are still read."""

Shape = Annotated[tuple[Count, ...], Len(1, 4)]


@dataclasses.dataclass(frozen=True)
class CodebookFields:
    """A codebook: shape and dtype of an image's codes, number of codes, the grid, and pixels per position."""

    shape: Shape
    dtype: Annotated[str, OneOf({"int16": np.int16, "int32": np.int32})]
    codebook_size: Count
    stride: Count
    grid_shape: Counts | None = None


@dataclasses.dataclass(frozen=True)
class SplitFields:
    """A split: number of images, a digest of their names, and number of rows."""

    images: Natural
    names: str
    rows: Natural


@dataclasses.dataclass(frozen=True)
class ShardFields:
    """A shard: number of rows, and BLAKE2b digest of the file, in hex; folders written earlier have no digest."""

    rows: Natural
    digest: str = ""


@dataclasses.dataclass(frozen=True)
class ManifestFields:
    """Fields of a manifest besides its data set, codebooks and splits."""

    run: str
    step: Natural
    replica: Natural
    weights: str
    image_shape: Counts
    names: bool
    labels: bool
    label_names: tuple[str, ...]
    skip_unreadable: bool
    format: Annotated[str, OneOf(FORMATS)]
    batch_size: Count
    shard_size: Count


SECTIONS = ("dataset", "digests", "codebooks", "splits")


def find_manifest(root: pathlib.Path, name: str) -> pathlib.Path | None:
    """Returns the path of `MANIFEST` or `UNFINISHED` in a folder, or of the earlier name; None if there is neither."""
    paths = (root / name, root / EARLIER[name])
    return next((path for path in paths if os.path.exists(path)), None)  # False if the path cannot be looked up


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a dict from a JSON file.

    Raises:
      InputError: the file cannot be read or holds something else.
    """
    with wrap_read_errors(path, RUN_ALL_AGAIN):
        return _section(json.loads(files.read_text(path)), "it")


def read_manifest(root: os.PathLike | str) -> dict[str, Any]:
    """Reads and validates the manifest of a complete folder.

    Returns:
      The manifest, where `splits[split]["files"]` maps the name of each shard to its fields `rows` and `digest`.

    Raises:
      InputError: there is none, or it is corrupted.
    """
    root = pathlib.Path(root)
    path = find_manifest(root, MANIFEST)
    if path is None:
        if find_manifest(root, UNFINISHED):
            raise InputError(f"{root} is not complete; run the same command of kvae.tokenize again to resume it")
        raise InputError(f"{root} holds no tokens: it has no {MANIFEST}; python -m kvae.tokenize writes such folders")
    manifest = read_json(path)
    with wrap_read_errors(path, RUN_ALL_AGAIN):
        try:
            return _validate(manifest)
        except InputError as error:
            raise InputError(f"{path} is corrupted ({error}); {RUN_ALL_AGAIN}") from error


def _section(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {short_repr(value)}; it must be a dict of fields")
    return value


def _validate(manifest: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in manifest.items() if name not in SECTIONS}
    sections = {name: _section(manifest.get(name), name) for name in SECTIONS}
    valid = validate_fields("it", fields, ManifestFields)
    codebooks, splits = {}, {}
    for name, value in sections["codebooks"].items():
        codebooks[name] = validate_fields(name, _section(value, f"codebook {name}"), CodebookFields)
    if not codebooks or {"index", "name", "label"} & codebooks.keys():
        raise ValueError(f"it has the codebooks {', '.join(codebooks) or 'none'}")
    for name, value in sections["splits"].items():
        section = dict(_section(value, f"split {name}"))
        shards = {
            file: _validate_shard(file, shard) for file, shard in _section(section.pop("files", None), "files").items()
        }
        splits[name] = {**validate_fields(name, section, SplitFields), "files": shards}
        if splits[name]["rows"] != sum(shard["rows"] for shard in shards.values()):
            raise ValueError(f"split {name} has {splits[name]['rows']} rows, and its files have another number")
    if "train" not in splits:
        raise ValueError(f"it has no split train; it has {', '.join(splits) or 'none'}")
    for name, digest in sections["digests"].items():
        validate(f"digests.{name}", digest, str)
    return {**valid, **sections, "codebooks": codebooks, "splits": splits}


def _validate_shard(file: str, value: Any) -> dict[str, Any]:
    """Validates what is known of a shard. Its name must not lead out of the folder: tokens may come from a stranger."""
    if pathlib.PurePath(file).name != file or "\0" in file:
        raise ValueError(f"{short_repr(file)} is not the name of a file in its folder")
    if isinstance(value, int) and not isinstance(value, bool):  # the format of older folders
        value = {"rows": value}
    return validate_fields(short_repr(file), _section(value, short_repr(file)), ShardFields)


def columns_of(manifest: Mapping[str, Any]) -> Columns:
    """Returns the columns of the rows that a manifest describes."""
    codebooks = manifest["codebooks"]
    return Columns(
        shapes={name: tuple(codebook["shape"]) for name, codebook in codebooks.items()},
        dtypes={name: codebook["dtype"] for name, codebook in codebooks.items()},
        sizes={name: codebook["codebook_size"] for name, codebook in codebooks.items()},
        names=manifest["names"],
        labels=manifest["labels"],
        label_names=tuple(manifest["label_names"]),
    )


def digest_of_file(path: pathlib.Path) -> str:
    """Returns the BLAKE2b digest (16 bytes, in hex) of a file."""
    with files.opened(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def read_shard(root: pathlib.Path, manifest: Mapping[str, Any], split: str, name: str) -> TokenRows:
    """Reads a shard and compares it with the manifest.

    Raises:
      InputError: it is missing or corrupted, belongs to another folder or place, or has codes out of range.
    """
    path, shard, columns = root / name, manifest["splits"][split]["files"][name], columns_of(manifest)
    with wrap_read_errors(path, RUN_AGAIN):
        files.check_file(path)
        if shard["digest"] and digest_of_file(path) != shard["digest"]:
            raise InputError(f"{path} is corrupted (its digest is not that in {MANIFEST}); {RUN_AGAIN}")
        rows = FORMATS[manifest["format"]].read(path, columns)
        if len(rows["index"]) != shard["rows"]:
            raise ValueError(f"it has {len(rows['index'])} rows instead of {shard['rows']}")
        for codebook, size in columns.sizes.items():
            check_codes(f"{path}: {codebook}", rows[codebook], size, rows["index"])
        return rows


def check_shard(root: pathlib.Path, manifest: Mapping[str, Any], split: str, number: int) -> None:
    """Compares the rows of a shard with the manifest by their number and the first index; reads a single row.

    Raises:
      InputError: they differ.
    """
    name = list(manifest["splits"][split]["files"])[number]
    expected, path, size = manifest["splits"][split]["files"][name]["rows"], root / name, manifest["shard_size"]
    with wrap_read_errors(path, RUN_AGAIN):
        count, first = FORMATS[manifest["format"]].peek(path, columns_of(manifest))
        if count != expected:
            raise ValueError(f"it has {count} rows instead of {expected}")
        if first is not None and first // size != number:
            raise ValueError(f"it begins with row {first}, which belongs to shard {first // size}")


def findings(folder: str) -> Iterator[tuple[str, str]]:
    """Yields each file of a folder of tokens and what is wrong with it; an empty text if it is intact."""
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        yield MANIFEST, str(error)
        return
    yield MANIFEST, ""
    for split, section in manifest["splits"].items():
        for name in section["files"]:
            try:
                read_shard(pathlib.Path(folder), manifest, split, name)
                yield name, ""
            except InputError as error:
                yield name, str(error)
