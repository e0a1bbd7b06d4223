"""Encodes images to files of codes. Each shard is written atomically, so a killed process loses at most one shard."""

import concurrent.futures
import contextlib
import fcntl
import functools
import itertools
import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from kvae.core.errors import InputError, choose, require_extra, wrap_write_errors
from kvae.core.files import digest_of_file, replaced, write_text
from kvae.data.pipeline import prefetch
from kvae.data.token_codebooks import write_codewords
from kvae.data.token_files import FORMATS, Columns, Format, TokenRows
from kvae.data.token_manifest import EARLIER, MANIFEST, UNFINISHED, columns_of, find_manifest, read_json, read_manifest
from kvae.runs.run import Run
from kvae.tokenize.description import make_manifest
from kvae.tokenize.source import Batch, Source, batches
from kvae.training.config.sections import flatten
from kvae.training.parallel import devices
from kvae.training.parallel.cluster import first_process_first, wait_for_all
from kvae.training.parallel.memory import BYTES_PER_PIXEL_VALUE, available_memory

with require_extra("train"):
    import tqdm

log = logging.getLogger(__name__)

READ_AHEAD = 4
"""Number of batches to read ahead of the encoder."""


def write_tokens(run: Run, source: Source, out: str, file_format: str, batch_size: int, shard_size: int) -> None:
    """Writes the codes of all images, or resumes an earlier call.

    Args:
      run: The run that encodes.
      source: The images.
      out: The folder to write to.
      file_format: A name in `FORMATS`.
      batch_size: Images per batch, on the devices of this process.
      shard_size: Images per file.

    Raises:
      InputError: The folder belongs to a call with other arguments or cannot be written, or an image cannot be read.
    """
    choose("--format", file_format, FORMATS)
    encode, codes = make_encoder(run, batch_size, source.shape)
    manifest = make_manifest(run, source, codes) | {
        "format": file_format, "batch_size": batch_size, "shard_size": shard_size
    }  # fmt: skip
    manifest["splits"] = {
        split: {"images": len(examples), "names": source.names_digest(split)}
        for split, examples in source.splits.items()
    }
    folder, columns = pathlib.Path(out), columns_of(manifest)
    with contextlib.ExitStack() as stack, wrap_write_errors(folder):
        with first_process_first():
            if jax.process_index() == 0:
                stack.enter_context(locked(folder))
            if is_complete(folder, json.loads(json.dumps(manifest))):
                log.info("%s is already complete", folder)
                return
            if jax.process_index() == 0:
                _start(folder, manifest)
                write_codewords(folder, run.codebooks)
        for split in source.splits:
            _write_split(encode, source, split, folder, columns, manifest)
        wait_for_all("tokens")
        if jax.process_index() == 0:
            _finish(folder, columns, manifest)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Creates and locks a folder, so that a command started twice does not write the same files twice.

    The lock ends with the process, even if the process is killed. Some file systems do not support locks.

    Raises:
      InputError: Another process has locked the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            wait = "wait until it ends, or choose another --out"
            raise InputError(f"another kvae.tokenize is writing to --out={folder}; {wait}") from error
        except OSError:
            log.info("%s is not locked: its file system does not support locks", folder)
        yield
    finally:
        os.close(descriptor)


def make_encoder(
    run: Run, batch_size: int, shape: tuple[int, int]
) -> tuple[Callable, Mapping[str, jax.ShapeDtypeStruct]]:
    """Compiles the encoder for the devices of this process.

    Args:
      run: The run that encodes.
      batch_size: Images per batch; a multiple of the number of devices.
      shape: Height and width of an image.

    Returns:
      A function from images uint8 [batch_size, h, w, 3] to codes by codebook, and the shapes of these codes.

    Raises:
      InputError: The model does not encode, or the batch size does not fit the devices.
    """
    if "encode" not in run.model.methods:
        raise InputError(f"{run.workdir} is a run of {type(run.model).__name__}, which does not encode images")
    mesh = devices.make_mesh(devices=jax.local_devices())
    devices.check_batch_size(batch_size, mesh)
    needed, (available, owner) = BYTES_PER_PIXEL_VALUE * batch_size * math.prod(shape) * 3, available_memory()
    if needed > available:
        raise InputError(
            f"a batch of {batch_size} images of {shape[0]} x {shape[1]} needs at least {needed / 2**30:,.0f} GiB, and "
            f"{owner} has {available / 2**30:,.0f} GiB; use a lower --batch-size or --size"
        )
    variables = jax.device_put(run.variables, NamedSharding(mesh, PartitionSpec()))
    encode = functools.partial(run.model.apply, method="encode")
    codes = jax.eval_shape(encode, variables, jax.ShapeDtypeStruct((batch_size, *shape, 3), jnp.uint8))
    program = jax.jit(encode)
    sharding = devices.shared_batch_sharding(mesh)
    return lambda images: program(variables, jax.device_put(images, sharding)), codes


def is_complete(folder: pathlib.Path, manifest: Mapping[str, Any]) -> bool:
    """True if a folder already has all files of the tokens that a manifest describes.

    Raises:
      InputError: The folder holds other files, or tokens made with other arguments.
    """
    for name in (MANIFEST, UNFINISHED):
        path = find_manifest(folder, name)
        if path is None:
            continue
        earlier = read_json(path)
        before, now = flatten(earlier), flatten(manifest)
        # A finished manifest has additional fields, which are not compared.
        changes = [
            f"{field} {before.get(field)} -> {value}" for field, value in now.items() if before.get(field) != value
        ]
        if changes:
            raise InputError(
                f"--out={folder} holds tokens made with other arguments: {'; '.join(changes[:3])}; choose another --out"
            )
        splits = read_manifest(folder)["splits"].values() if name == MANIFEST else ()
        files = [file for split in splits for file in split["files"]]
        return name == MANIFEST and all((folder / file).exists() for file in files)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"--out={folder} holds other files; choose a new or empty folder")
    return False


def _start(folder: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Marks a new folder as unfinished, and deletes what a killed process left behind."""
    for partial in folder.glob(".*.*[0-9]"):
        partial.unlink()
    if not any(find_manifest(folder, name) for name in (MANIFEST, UNFINISHED)):
        write_text(folder / UNFINISHED, json.dumps(manifest, indent=2) + "\n")


def _write_split(
    encode: Callable, source: Source, split: str, folder: pathlib.Path, columns: Columns, manifest: Mapping[str, Any]
) -> None:
    """Writes the shards of a split that this process is responsible for and that do not exist yet."""
    count, size, file_format = len(source.splits[split]), manifest["shard_size"], FORMATS[manifest["format"]]
    names = _file_names(file_format, split, count, size)
    shards = range(jax.process_index(), len(names), jax.process_count())
    missing = {i: range(i * size, min((i + 1) * size, count)) for i in shards if not (folder / names[i]).exists()}
    total, written, started = sum(map(len, missing.values())), 0, time.monotonic()
    bar = tqdm.tqdm(total=total, desc=split, unit=" images", disable=None)
    with prefetch(batches(source, split, missing, manifest["batch_size"]), READ_AHEAD) as ready, bar:
        encoded = _encode_batches(encode, ready, columns, manifest["batch_size"])
        for shard, parts in itertools.groupby(encoded, lambda part: part[0].shard):
            rows = _join_rows(source.names(split), columns, list(parts))
            with replaced(folder / names[shard]) as incomplete:
                file_format.write(incomplete, rows, columns)
            written += len(missing[shard])
            bar.update(len(missing[shard]))
            if bar.disable:  # stderr is a file
                elapsed = time.monotonic() - started
                log.info(bar.format_meter(written, total, elapsed, ncols=0, prefix=split, unit=" images"))


def _file_names(file_format: Format, split: str, count: int, size: int) -> list[str]:
    shards = math.ceil(count / size)
    return [file_format.file_name(split, number, shards) for number in range(shards)]


def _encode_batches(
    encode: Callable, ready: Iterator[Batch], columns: Columns, size: int
) -> Iterator[tuple[Batch, dict[str, np.ndarray]]]:
    """Yields batches with their codes; fetches the codes of a batch while the devices encode the next one."""
    previous = None
    for batch in ready:
        images = batch.arrays.get("image", ())
        codes = {name: np.zeros((0, *shape)) for name, shape in columns.shapes.items()}
        if len(images):
            codes = encode(np.concatenate([images, np.repeat(images[-1:], size - len(images), axis=0)]))
        if previous is not None:
            yield previous[0], jax.device_get(previous[1])
        previous = batch, codes
    if previous is not None:
        yield previous[0], jax.device_get(previous[1])


def _join_rows(names: Sequence[str], columns: Columns, parts: list[tuple[Batch, dict[str, np.ndarray]]]) -> TokenRows:
    """Returns the rows of a shard from its batches and their codes."""
    index = np.concatenate([batch.indices for batch, _ in parts])
    rows: TokenRows = {"index": index}
    if columns.names:
        # Bytes of a name that are not valid UTF-8 are written as escape sequences.
        rows["name"] = [names[i].encode(errors="backslashreplace").decode() if len(names) else "" for i in index]
    if columns.labels:
        labels = [batch.arrays.get("label", np.zeros(0)) for batch, _ in parts]
        rows["label"] = np.concatenate(labels).astype(np.int32)
    for name, dtype in columns.dtypes.items():
        rows[name] = np.concatenate([codes[name][: len(batch.indices)] for batch, codes in parts]).astype(dtype)
    return rows


def _finish(folder: pathlib.Path, columns: Columns, manifest: dict[str, Any]) -> None:
    """Counts the rows of each file and writes _tokens.json, which marks the folder as complete."""
    files, file_format = {}, FORMATS[manifest["format"]]
    for name, split in manifest["splits"].items():
        shards = _file_names(file_format, name, split["images"], manifest["shard_size"])
        files[name] = {shard: file_format.peek(folder / shard, columns)[0] for shard in shards}
        rows = sum(files[name].values())
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            digests_of_files = pool.map(digest_of_file, [folder / shard for shard in shards])
        described = {
            shard: {"rows": count, "digest": digest}
            for (shard, count), digest in zip(files[name].items(), digests_of_files, strict=True)
        }
        manifest["splits"][name] = {**split, "rows": rows, "files": described}
        if not rows:
            raise InputError(f"none of the {split['images']} images of {name} can be read; {folder} has no codes")
        skipped = f"; {split['images'] - rows} images skipped" if rows < split["images"] else ""
        log.info("%s: %d rows in %d files%s", name, rows, len(shards), skipped)
    file_format.finish(folder, files, columns)
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    for name in (UNFINISHED, *EARLIER.values()):
        (folder / name).unlink(missing_ok=True)
