"""A data set as files of codes: shard by shard, each written in one step, so that a kill costs one shard at most."""

import functools
import hashlib
import itertools
import json
import logging
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import NamedSharding, PartitionSpec

from kvae.core.digests import digests
from kvae.core.errors import InputError, choose, wrap_read_errors, wrap_write_errors
from kvae.core.files import replaced, write_text
from kvae.data.pipeline import prefetch
from kvae.data.sets.tokens import MANIFEST, UNFINISHED, columns_of
from kvae.data.token_files import FORMATS, RUN_ALL_AGAIN, Columns, Format, TokenRows
from kvae.runs.run import Run
from kvae.tokenize.source import Batch, Source, batches
from kvae.training.config.sections import flatten
from kvae.training.parallel import devices
from kvae.training.parallel.cluster import first_process_first, wait_for_all

log = logging.getLogger(__name__)

READ_AHEAD = 4
"""How many batches are ready before they are encoded."""


def write_tokens(run: Run, source: Source, out: str, file_format: str, batch_size: int, shard_size: int) -> None:
    """Writes the codes of all images; goes on with what an earlier call has left.

    Args:
      run: which encodes.
      source: the images.
      out: the folder.
      file_format: a name in `FORMATS`.
      batch_size: images encoded at once, on the devices of this process.
      shard_size: images in a file.

    Raises:
      InputError: the folder is that of another call, or cannot be written; an image cannot be read.
    """
    choose("--format", file_format, FORMATS)
    encode, codes = encoder(run, batch_size, source.shape)
    manifest = described(run, source, codes) | {
        "format": file_format, "batch_size": batch_size, "shard_size": shard_size
    }  # fmt: skip
    manifest["splits"] = {
        split: {"images": len(examples), "names": source.digest(split)} for split, examples in source.splits.items()
    }
    folder, kind, columns = pathlib.Path(out), FORMATS[file_format], columns_of(manifest)
    with wrap_write_errors(folder):
        with first_process_first():
            if open_folder(folder, json.loads(json.dumps(manifest))):
                log.info("%s is complete already", folder)
                return
        for split in source.splits:
            _write_split(encode, source, split, folder, kind, columns, manifest)
        wait_for_all("tokens")
        if jax.process_index() == 0:
            _finish(folder, kind, columns, manifest)


def encoder(run: Run, batch_size: int, shape: tuple[int, int]) -> tuple[Callable, Mapping[str, jax.ShapeDtypeStruct]]:
    """Codes on the devices of this process from images uint8 [batch_size, h, w, 3], and the shapes of those codes."""
    if "encode" not in run.model.methods:
        raise InputError(f"{run.workdir} is a run of {type(run.model).__name__}, which has no codes")
    mesh = devices.make_mesh(devices=jax.local_devices())
    devices.check_batch_size(batch_size, mesh)
    variables = jax.device_put(run.variables, NamedSharding(mesh, PartitionSpec()))
    encode = functools.partial(run.model.apply, method="encode")
    codes = jax.eval_shape(encode, variables, jax.ShapeDtypeStruct((batch_size, *shape, 3), jnp.uint8))
    program = jax.jit(encode)
    sharding = devices.shared_batch_sharding(mesh)
    return lambda images: program(variables, jax.device_put(images, sharding)), codes


def described(run: Run, source: Source, codes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """What tokens.json says of the codes and of where they come from."""
    weights = json.dumps(digests(run.variables), sort_keys=True).encode()
    codebooks = {
        name: {
            "shape": list(codes[name].shape[1:]),
            "dtype": "int16" if layer.codebook_size <= 2**15 else "int32",
            "codebook_size": layer.codebook_size,
            "grid_shape": list(layer.grid.shape) if layer.grid is not None else None,
            "stride": run.model.code_strides[name],
        }
        for name, layer in run.model.quantizers.items()
    }
    return {
        "run": run.workdir,
        "step": run.step,
        "replica": run.replica,
        "weights": hashlib.blake2b(weights, digest_size=16).hexdigest(),
        "dataset": dict(source.described),
        "image_shape": [*source.shape, 3],
        "codebooks": codebooks,
        "digests": digests(run.codebooks),
        "names": any(len(source.names(split)) for split in source.splits),
        "labels": source.labels,
        "label_names": source.label_names,
        "skip_unreadable": source.skip_unreadable,
    }


def open_folder(folder: pathlib.Path, manifest: Mapping[str, Any]) -> bool:
    """Makes the folder, or checks that an equal call has begun it; whether all its files are there.

    Raises:
      InputError: the folder holds anything else.
    """
    for name in (MANIFEST, UNFINISHED):
        if not (path := folder / name).exists():
            continue
        with wrap_read_errors(path, RUN_ALL_AGAIN):
            before = json.loads(path.read_text())
        flat, now = flatten(before), flatten(manifest)
        # What is known in the end only stands beside what is known from the start.
        differ = [f"{field} {flat.get(field)} -> {value}" for field, value in now.items() if flat.get(field) != value]
        if differ:
            raise InputError(f"--out={folder} was made by another call: {'; '.join(differ[:3])}; choose another --out")
        for left in folder.glob(".*.*[0-9]") if jax.process_index() == 0 else ():  # by a kill
            left.unlink()
        files = [file for said in before["splits"].values() for file in said.get("files", ())]
        return name == MANIFEST and all((folder / file).exists() for file in files)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"--out={folder} holds other files; choose an empty or a new folder")
    write_text(folder / UNFINISHED, json.dumps(manifest, indent=2) + "\n")
    return False


def _write_split(encode, source, split, folder, kind: Format, columns, manifest):
    """Writes the shards of a split that are of this process and not there yet."""
    count, size = len(source.splits[split]), manifest["shard_size"]
    names = _file_names(kind, split, count, size)
    mine = range(jax.process_index(), len(names), jax.process_count())
    todo = {i: range(i * size, min((i + 1) * size, count)) for i in mine if not (folder / names[i]).exists()}
    total, written, started = sum(map(len, todo.values())), 0, time.monotonic()
    bar = tqdm.tqdm(total=total, desc=split, unit=" images", disable=None)
    with prefetch(batches(source, split, todo, manifest["batch_size"]), READ_AHEAD) as ready, bar:
        done = _encoded(encode, ready, columns, manifest["batch_size"])
        for shard, parts in itertools.groupby(done, lambda part: part[0].shard):
            rows = _rows(source.names(split), columns, list(parts))
            with replaced(folder / names[shard]) as incomplete:
                kind.write(incomplete, rows, columns)
            written += len(todo[shard])
            bar.update(len(todo[shard]))
            if bar.disable:  # no terminal, but perhaps a file that somebody follows
                elapsed = time.monotonic() - started
                log.info(bar.format_meter(written, total, elapsed, ncols=0, prefix=split, unit=" images"))


def _file_names(kind: Format, split: str, count: int, size: int) -> list[str]:
    shards = math.ceil(count / size)
    return [kind.file_name(split, number, shards) for number in range(shards)]


def _encoded(encode, ready: Iterator[Batch], columns: Columns, size: int) -> Iterator[tuple[Batch, dict]]:
    """Batches and their codes, one behind what the devices work on."""
    before = None
    for batch in ready:
        images = batch.arrays.get("image", ())
        codes = {name: np.zeros((0, *shape)) for name, shape in columns.shapes.items()}
        if len(images):
            codes = encode(np.concatenate([images, np.repeat(images[-1:], size - len(images), axis=0)]))
        if before is not None:
            yield before[0], jax.device_get(before[1])
        before = batch, codes
    if before is not None:
        yield before[0], jax.device_get(before[1])


def _rows(names: Sequence[str], columns: Columns, parts: list[tuple[Batch, dict]]) -> TokenRows:
    """A shard, from its batches and their codes."""
    index = np.concatenate([batch.indices for batch, _ in parts])
    rows: TokenRows = {"index": index}
    if columns.names:
        # A name that is no UTF-8 keeps its bytes as escapes.
        rows["name"] = [names[i].encode(errors="backslashreplace").decode() if len(names) else "" for i in index]
    if columns.labels:
        labels = [batch.arrays.get("label", np.zeros(0)) for batch, _ in parts]
        rows["label"] = np.concatenate(labels).astype(np.int32)
    for name, dtype in columns.dtypes.items():
        rows[name] = np.concatenate([codes[name][: len(batch.indices)] for batch, codes in parts]).astype(dtype)
    return rows


def _finish(folder: pathlib.Path, kind: Format, columns: Columns, manifest: dict) -> None:
    """Counts what was written, and says so in tokens.json, which comes last."""
    counts = {}
    for split, said in manifest["splits"].items():
        names = _file_names(kind, split, said["images"], manifest["shard_size"])
        counts[split] = {name: kind.count(folder / name) for name in names}
        rows = sum(counts[split].values())
        manifest["splits"][split] = {**said, "rows": rows, "files": counts[split]}
        if not rows:
            raise InputError(f"none of the {said['images']} images of {split} can be read: {folder} holds no codes")
        left_out = f"; {said['images'] - rows} images left out" if rows < said["images"] else ""
        log.info("%s: %d rows in %d files%s", split, rows, len(names), left_out)
    kind.finish(folder, counts, columns)
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    (folder / UNFINISHED).unlink(missing_ok=True)
