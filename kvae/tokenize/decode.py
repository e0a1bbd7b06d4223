"""Images from files of codes."""

import concurrent.futures
import os
import pathlib

import jax
import numpy as np
import tqdm
from PIL import Image

from kvae.core.digests import digests
from kvae.core.errors import InputError, choose, wrap_write_errors
from kvae.core.files import replaced
from kvae.data.sets.tokens import columns_of, read_manifest
from kvae.data.token_files import FORMATS
from kvae.runs.run import Run


def write_images(run: Run, tokens: str, out: str, batch_size: int) -> None:
    """Writes a PNG file of each row, `<split>/<name or index>.png`; those that are there already stay.

    Args:
      run: whose codes they are.
      tokens: the folder of codes.
      out: the folder to be written.
      batch_size: images decoded at once.

    Raises:
      InputError: the codes are damaged or of another codebook, or the folder cannot be written.
    """
    manifest = read_manifest(tokens)
    if manifest["digests"] != digests(run.codebooks):
        made = f"{manifest['run']} at step {manifest['step']}"
        hint = "" if manifest["step"] == run.step else f"; --step={manifest['step']} may have it"
        raise InputError(f"{tokens} holds codes of {made}; {run.workdir} at step {run.step} has another codebook{hint}")
    if pathlib.Path(out).resolve() == pathlib.Path(tokens).resolve():
        raise InputError(f"--out={out} is the folder of the codes; choose another one")
    kind, columns = choose("format", manifest["format"], FORMATS), columns_of(manifest)
    total = sum(said["rows"] for said in manifest["splits"].values())
    bar = tqdm.tqdm(total=total, desc=out, unit=" images", disable=None)
    shards = [(split, name) for split, said in manifest["splits"].items() for name in said["files"]]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool, wrap_write_errors(out), bar:
        for split, name in shards[jax.process_index() :: jax.process_count()]:
            rows = kind.read(pathlib.Path(tokens) / name, columns)
            files = [_file(pathlib.Path(out) / split, rows, i) for i in range(len(rows["index"]))]
            missing = [i for i, file in enumerate(files) if not file.exists()]
            for first in range(0, len(missing), batch_size):
                chosen = missing[first : first + batch_size]
                filled = chosen + chosen[-1:] * (batch_size - len(chosen))  # so that one program serves all
                images = run.decode({codebook: rows[codebook][filled] for codebook in columns.shapes})
                list(pool.map(_save, [files[i] for i in chosen], images))
            bar.update(len(files))


def _file(folder: pathlib.Path, rows, i: int) -> pathlib.Path:
    name = pathlib.PurePosixPath(rows["name"][i] if "name" in rows else f"{rows['index'][i]:08}")
    if name.is_absolute() or ".." in name.parts:
        raise InputError(f"row {rows['index'][i]} is named {str(name)!r}, which leads out of the folder")
    return folder / f"{name}.png"


def _save(file: pathlib.Path, image: np.ndarray) -> None:
    with replaced(file) as incomplete:
        Image.fromarray(image).save(incomplete, "PNG")
