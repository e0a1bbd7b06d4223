"""Describes a folder of tokens before it is encoded: the content of _tokens.json."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax

from kvae.core.digests import digests
from kvae.core.errors import InputError
from kvae.grids import GRIDS, Grid
from kvae.runs.run import Run
from kvae.tokenize.source import Source


def make_manifest(run: Run, source: Source, codes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """Returns the contents of _tokens.json that are known before encoding.

    Args:
      run: The run that encodes.
      source: The images.
      codes: Shapes of a batch of codes by codebook, [b, h', w'] or [b, h', w', q].
    """
    weights = json.dumps(digests(run.variables), sort_keys=True).encode()
    codebooks = {
        name: {
            "shape": list(codes[name].shape[1:]),
            "dtype": "int16" if layer.codebook_size <= 2**15 else "int32",
            "codebook_size": layer.codebook_size,
            "grid_shape": list(layer.grid.shape) if layer.grid is not None else None,
            "topology": name_of_grid(layer.grid),
            "stride": run.model.code_strides[name],
        }
        for name, layer in run.model.quantizers.items()
    }
    return {
        "run": run.workdir,
        "step": run.step,
        "replica": run.replica,
        "weights": hashlib.blake2b(weights, digest_size=16).hexdigest(),
        "dataset": dict(source.section),
        "image_shape": [*source.shape, 3],
        "codebooks": codebooks,
        "digests": digests(run.codebooks),
        "names": any(len(source.names(split)) for split in source.splits),
        "labels": source.has_labels,
        "label_names": source.label_names,
        "skip_unreadable": source.skip_unreadable,
    }


def name_of_grid(grid: Grid | None) -> str:
    """Returns the name in `GRIDS` that makes a grid; "plane" for a codebook without one, "" for an unregistered grid.

    Example:
      >>> from kvae.grids import Torus
      >>> name_of_grid(Torus((4, 8)))
      'torus'
    """
    if grid is None:
        return "plane"
    for name, make in GRIDS.items():
        with contextlib.suppress(InputError):  # a grid that cannot have this shape
            if make(grid.shape) == grid:
                return name
    return ""
