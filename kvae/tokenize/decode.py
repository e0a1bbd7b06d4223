"""Decodes files of codes to PNG images."""

import concurrent.futures
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from kvae.core.digests import digests
from kvae.core.errors import InputError, require_extra, wrap_write_errors
from kvae.core.files import replaced
from kvae.data.token_manifest import columns_of, read_manifest, read_shard
from kvae.runs.run import Run

with require_extra("train"):
    import tqdm
    from PIL import Image


def write_images(run: Run, tokens: str, out: str, batch_size: int) -> None:
    """Writes a PNG file for each row, `<split>/<name or index>.png`; skips files that exist.

    Args:
      run: The run that encoded the images.
      tokens: The folder of codes.
      out: The folder to write to.
      batch_size: Images per decoded batch.

    Raises:
      InputError: The codes are corrupted or belong to another codebook, or the folder cannot be written.
    """
    manifest = read_manifest(tokens)
    if manifest["digests"] != digests(run.codebooks):
        source = f"{manifest['run']} at step {manifest['step']}"
        hint = "" if manifest["step"] == run.step else f"; try --step={manifest['step']}"
        raise InputError(
            f"{tokens} holds codes of {source}; {run.workdir} at step {run.step} has another codebook{hint}"
        )
    if pathlib.Path(out).resolve() == pathlib.Path(tokens).resolve():
        raise InputError(f"--out={out} is the folder of the codes; choose another --out")
    columns = columns_of(manifest)
    total = sum(split["rows"] for split in manifest["splits"].values())
    bar = tqdm.tqdm(total=total, desc=out, unit=" images", disable=None)
    shards = [(name, file) for name, split in manifest["splits"].items() for file in split["files"]]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool, wrap_write_errors(out), bar:
        for split, shard in shards[jax.process_index() :: jax.process_count()]:
            rows = read_shard(pathlib.Path(tokens), manifest, split, shard)
            files = [_file(pathlib.Path(out) / split, rows, i) for i in range(len(rows["index"]))]
            missing = [i for i, file in enumerate(files) if not file.exists()]
            for first in range(0, len(missing), batch_size):
                chosen = missing[first : first + batch_size]
                padded = chosen + chosen[-1:] * (batch_size - len(chosen))  # one shape, one compiled program
                images = run.decode({codebook: rows[codebook][padded] for codebook in columns.shapes})
                list(pool.map(_save, [files[i] for i in chosen], images))
            bar.update(len(files))


def _file(folder: pathlib.Path, rows: Mapping[str, Any], i: int) -> pathlib.Path:
    """Returns the path of a row's PNG file; rejects names outside the folder, because tokens may be untrusted."""
    name = pathlib.PurePosixPath(rows["name"][i] if "name" in rows else f"{rows['index'][i]:08}")
    if name.is_absolute() or ".." in name.parts:
        raise InputError(f"row {rows['index'][i]} has the name {str(name)!r}, which points outside the output folder")
    return folder / f"{name}.png"


def _save(file: pathlib.Path, image: np.ndarray) -> None:
    with replaced(file) as incomplete:
        Image.fromarray(image).save(incomplete, "PNG")
