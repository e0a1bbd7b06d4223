"""The codewords of a folder of tokens, in one safetensors file next to the codes."""

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from kvae.core import files
from kvae.core.errors import require_extra, wrap_read_errors
from kvae.data.dataset import Codebook
from kvae.data.token_files import RUN_ALL_AGAIN

CODEWORDS = "_codewords.safetensors"
"""The file of the codewords. The manifest holds their digests. Folders of older versions lack this file."""


def read_codewords(root: pathlib.Path, manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Reads the codewords of a folder and checks them against the manifest.

    Args:
      root: the folder of tokens.
      manifest: its manifest, see `kvae.data.token_manifest.read_manifest`.

    Returns:
      Codewords by codebook: float32 [*grid_shape, d], or [K, d] without a grid. A quantiser with q codebooks has q
      entries, `<name>_0`, `<name>_1` and so on. Empty if an older version wrote the folder.

    Raises:
      InputError: the file is corrupted, or belongs to other codes.
    """
    path = root / CODEWORDS
    if not os.path.lexists(path):
        return {}
    with require_extra("share"):
        import safetensors.numpy

        from kvae.core.digests import digests  # imported here because it imports JAX

    with wrap_read_errors(path, RUN_ALL_AGAIN):
        with files.opened(path) as file:
            codewords = safetensors.numpy.load(file.read())
        if digests(codewords) != manifest["digests"]:
            raise ValueError("its digests differ from the digests of the codes")
        return codewords


def write_codewords(root: pathlib.Path, codewords: Mapping[str, np.ndarray]) -> None:
    """Writes the codewords of a folder, in the form that `read_codewords` returns."""
    with require_extra("share"):
        import safetensors.numpy

    arrays = {name: np.ascontiguousarray(vectors) for name, vectors in codewords.items()}
    with files.replaced(root / CODEWORDS) as incomplete:
        incomplete.write_bytes(safetensors.numpy.save(arrays))


def codebooks_of(root: pathlib.Path, manifest: Mapping[str, Any]) -> dict[str, Codebook]:
    """Returns the codebooks of a folder of tokens by name; arguments and errors are those of `read_codewords`."""
    codewords, codebooks = read_codewords(root, manifest), {}
    for name, fields in manifest["codebooks"].items():
        shape, size = fields["shape"], fields["codebook_size"]
        names = [f"{name}_{part}" for part in range(math.prod(shape[2:]))] if len(shape) > 2 else [name]
        with wrap_read_errors(root / CODEWORDS, RUN_ALL_AGAIN):
            parts = [codewords[part].reshape(size, -1) for part in names] if codewords else None
        vectors = np.stack(parts) if parts else None
        vectors = vectors[0] if parts and len(shape) == 2 else vectors
        codebooks[name] = Codebook(shape, size, fields["grid_shape"] or (), fields["topology"], vectors)
    return codebooks
