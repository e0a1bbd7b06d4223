"""The manifest of a folder of tokens: its schema, and checks of the shards against it."""

import dataclasses
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
from kvae.core.fields import Count, Natural, OneOf, Shape, validate, validate_fields
from kvae.data.token_codebooks import CODEWORDS, read_codewords
from kvae.data.token_files import FORMATS, RUN_AGAIN, RUN_ALL_AGAIN, Columns, TokenRows, check_codes

log = logging.getLogger(__name__)

MANIFEST = "_tokens.json"
"""The file that describes a folder of tokens. It is written last. Readers of Parquet folders skip files whose names
begin with an underscore."""

UNFINISHED = "_tokens.unfinished.json"
"""The name of the manifest until the folder is complete."""

EARLIER = {MANIFEST: "tokens.json", UNFINISHED: "tokens.unfinished.json"}
"""Former names of these files, which are still read."""

CodesShape = Annotated[tuple[Count, ...], Len(1, 4)]


@dataclasses.dataclass(frozen=True)
class CodebookFields:
    """Fields of a codebook: shape and dtype of an image's codes, number of codes, pixels per code, and the grid.

    `topology` is the grid's name in `kvae.GRIDS`; older folders do not have it.
    """

    shape: CodesShape
    dtype: Annotated[str, OneOf({"int16": np.int16, "int32": np.int32})]
    codebook_size: Count
    stride: Count
    grid_shape: Shape | None = None
    topology: str = "plane"


@dataclasses.dataclass(frozen=True)
class SplitFields:
    """Fields of a split: number of images, digest of their names, and number of rows."""

    images: Natural
    names: str
    rows: Natural


@dataclasses.dataclass(frozen=True)
class ShardFields:
    """Fields of a shard: number of rows, and BLAKE2b digest of the file in hex, which older folders do not have."""

    rows: Natural
    digest: str = ""


@dataclasses.dataclass(frozen=True)
class ManifestFields:
    """Fields of a manifest other than its `SECTIONS`."""

    run: str
    step: Natural
    replica: Natural
    weights: str
    image_shape: Shape
    names: bool
    labels: bool
    label_names: tuple[str, ...]
    skip_unreadable: bool
    format: Annotated[str, OneOf(FORMATS)]
    batch_size: Count
    shard_size: Count


SECTIONS = ("dataset", "digests", "codebooks", "splits")


def find_manifest(root: pathlib.Path, name: str) -> pathlib.Path | None:
    """Returns the path of `MANIFEST` or `UNFINISHED`, perhaps under its former name; None if it is missing."""
    paths = (root / name, root / EARLIER[name])
    return next((path for path in paths if os.path.exists(path)), None)  # False, not an error, if access is denied


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a dict from a JSON file.

    Raises:
      InputError: the file cannot be read or does not hold a dict.
    """
    with wrap_read_errors(path, RUN_ALL_AGAIN):
        return _section(json.loads(files.read_text(path)), "manifest")


def read_manifest(root: os.PathLike | str) -> dict[str, Any]:
    """Reads and validates the manifest of a complete folder.

    Returns:
      The manifest, where `splits[split]["files"]` maps the name of each shard to its fields `rows` and `digest`.

    Raises:
      InputError: the manifest is missing or corrupted, or the folder is incomplete.
    """
    root = pathlib.Path(root)
    path = find_manifest(root, MANIFEST)
    if path is None:
        if find_manifest(root, UNFINISHED):
            raise InputError(f"{root} is incomplete; run the same kvae.tokenize command again to resume it")
        raise InputError(
            f"{root} is not a folder of tokens: it has no {MANIFEST}; create one with python -m kvae.tokenize"
        )
    manifest = read_json(path)
    with wrap_read_errors(path, RUN_ALL_AGAIN):
        try:
            return _validate(manifest)
        except InputError as error:
            raise InputError(f"{path} is corrupted ({error}); {RUN_ALL_AGAIN}") from error


def _section(value: Any, name: str) -> dict[str, Any]:
    """Returns a value, after checking that it is a dict."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {short_repr(value)}; it must be a dict of fields")
    return value


def _validate(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a manifest with validated fields; raises InputError or ValueError."""
    fields = {name: value for name, value in manifest.items() if name not in SECTIONS}
    sections = {name: _section(manifest.get(name), name) for name in SECTIONS}
    valid = validate_fields("manifest", fields, ManifestFields)
    codebooks, splits = {}, {}
    for name, value in sections["codebooks"].items():
        codebooks[name] = validate_fields(name, _section(value, f"codebook {name}"), CodebookFields)
    if not codebooks or {"index", "name", "label"} & codebooks.keys():
        names = ", ".join(codebooks) or "none"
        raise ValueError(
            f"the codebooks are {names}; there must be at least one, and none may be called index, name or label"
        )
    for name, value in sections["splits"].items():
        section = dict(_section(value, f"split {name}"))
        shards = {
            file: _validate_shard(file, shard) for file, shard in _section(section.pop("files", None), "files").items()
        }
        splits[name] = {**validate_fields(name, section, SplitFields), "files": shards}
        if splits[name]["rows"] != (total := sum(shard["rows"] for shard in shards.values())):
            raise ValueError(f"split {name} has {splits[name]['rows']} rows, but its files have {total}")
    if "train" not in splits:
        raise ValueError(f"split train is missing; the splits are {', '.join(splits) or 'none'}")
    for name, digest in sections["digests"].items():
        validate(f"digests.{name}", digest, str)
    return {**valid, **sections, "codebooks": codebooks, "splits": splits}


def _validate_shard(file: str, value: Any) -> dict[str, Any]:
    """Validates the entry of a shard. Its name must not lead out of the folder, because tokens may be untrusted."""
    if pathlib.PurePath(file).name != file or "\0" in file:
        raise ValueError(f"{short_repr(file)} is not a plain file name")
    if isinstance(value, int) and not isinstance(value, bool):  # the format of older folders
        value = {"rows": value}
    return validate_fields(short_repr(file), _section(value, short_repr(file)), ShardFields)


def columns_of(manifest: Mapping[str, Any]) -> Columns:
    """Returns the columns of the shards that a manifest describes."""
    codebooks = manifest["codebooks"]
    return Columns(
        shapes={name: tuple(codebook["shape"]) for name, codebook in codebooks.items()},
        dtypes={name: codebook["dtype"] for name, codebook in codebooks.items()},
        sizes={name: codebook["codebook_size"] for name, codebook in codebooks.items()},
        names=manifest["names"],
        labels=manifest["labels"],
        label_names=tuple(manifest["label_names"]),
    )


def read_shard(root: pathlib.Path, manifest: Mapping[str, Any], split: str, name: str) -> TokenRows:
    """Reads a shard and checks it against the manifest.

    Args:
      root: the folder of tokens.
      manifest: its manifest, see `read_manifest`.
      split: the split of the shard.
      name: file name of the shard.

    Returns:
      The rows of the shard.

    Raises:
      InputError: the shard is missing or corrupted, differs from the manifest, or has codes out of range.
    """
    path, shard, columns = root / name, manifest["splits"][split]["files"][name], columns_of(manifest)
    with wrap_read_errors(path, RUN_AGAIN):
        files.check_file(path)
        if shard["digest"] and files.digest_of_file(path) != shard["digest"]:
            raise InputError(f"{path} is corrupted (its digest differs from the digest in {MANIFEST}); {RUN_AGAIN}")
        rows = FORMATS[manifest["format"]].read(path, columns)
        if len(rows["index"]) != shard["rows"]:
            raise ValueError(f"it has {len(rows['index'])} rows instead of {shard['rows']}")
        for codebook, size in columns.sizes.items():
            check_codes(f"{path}: {codebook}", rows[codebook], size, rows["index"])
        return rows


def check_shard(root: pathlib.Path, manifest: Mapping[str, Any], split: str, number: int) -> None:
    """Checks the number of rows and the first index of a shard against the manifest, without reading all codes.

    Args:
      root: the folder of tokens.
      manifest: its manifest, see `read_manifest`.
      split: the split of the shard.
      number: position of the shard in the split, from 0.

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
    """Yields the name of each file of a folder of tokens and an error message, which is empty if the file is intact."""
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        yield MANIFEST, str(error)
        return
    yield MANIFEST, ""
    if os.path.lexists(pathlib.Path(folder) / CODEWORDS):
        try:
            read_codewords(pathlib.Path(folder), manifest)
            yield CODEWORDS, ""
        except InputError as error:
            yield CODEWORDS, str(error)
    for split, section in manifest["splits"].items():
        for name in section["files"]:
            try:
                read_shard(pathlib.Path(folder), manifest, split, name)
                yield name, ""
            except InputError as error:
                yield name, str(error)
