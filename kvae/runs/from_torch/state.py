"""State dicts of PyTorch as NumPy arrays, read without running code that a file may hold."""

import math
import pathlib
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from kvae.core.errors import InputError, first_line
from kvae.runs.share import read_weights

State = dict[str, np.ndarray]
"""Arrays by their names in PyTorch."""

NEIGHBORHOODS = {"hard": "hard", "none": "none", "gaussian": "exponential"}
"""By their names in the release, the neighbourhoods: what it calls Gaussian falls with the distance, not its square."""


def read_state(path: pathlib.Path) -> tuple[State, dict[str, Any]]:
    """A state dict, and the arguments of the release's program where the file is a checkpoint of it.

    Args:
      path: .safetensors, or anything else for `torch.load`.

    Raises:
      InputError: it cannot be read, or holds no state dict.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    if path.suffix == ".safetensors":
        return read_weights(path)[0], {}
    found = _torch_load(path)
    arguments: Mapping = {}
    if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):
        arguments, found = (found.get("run_invariants") or {}).get("args") or {}, found["model"]
    if not isinstance(found, Mapping) or not found or not all(hasattr(value, "numpy") for value in found.values()):
        raise InputError(f"{path} holds no state dict: give what torch.save(model.state_dict(), FILE) writes")
    # Data-parallel training puts a prefix before each name.
    return {name.removeprefix("module."): value.float().numpy() for name, value in found.items()}, dict(arguments)


def _torch_load(path: pathlib.Path):
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: PyTorch reads such files, and is not installed here; where it is, "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors') writes a file that needs no PyTorch"
        ) from error
    # The release keeps its counters in a dict of its own kind: a plain one takes its place.
    harmless = [(dict, "framework.data_structures.dotdict.DotDict")]
    try:
        with torch.serialization.safe_globals(harmless):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is no file of weights, or holds objects beside them, which could run code as they are loaded: "
            "give what torch.save(model.state_dict(), FILE) writes"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{path} is not readable as weights of PyTorch ({first_line(error)[:200]}); get it again"
        ) from error


def quantizer_fields(arguments: Mapping[str, Any], codebook_size: int) -> dict[str, Any]:
    """Fields of a quantiser from the arguments of the release's program; none where there are none.

    Args:
      arguments: such as `vq_vae.grid_dim` by name.
      codebook_size: K.
    """
    given = {name.removeprefix("vq_vae."): value for name, value in arguments.items() if name.startswith("vq_vae.")}
    if not given:
        return {}
    return {
        "grid_shape": grid_shape(codebook_size, given["grid_dim"]),
        "neighborhood": NEIGHBORHOODS[given["neihborhood"]],
        "shrink_step": float(given["count_unit"]),
        "decay": float(given["decay"]),
        "commitment_weight": float(given["commitment_cost"]),
        "init_count": float(given["magic_counter_init"]),
        "update_empty": given["quantizer"] != "hardsom_noupdate_zero",
        "neighbor_weight": float(given["som_cost"]),
    }


def grid_shape(size: int, axes: int) -> tuple[int, ...]:
    """The shape of the release's grid of so many axes, whose last axis is the one that its codes run along first."""
    if axes == 1:
        return (size,)
    shortest = next(n for n in range(math.ceil(size ** (1 / axes)), 0, -1) if size % n == 0)
    return (shortest, *grid_shape(size // shortest, axes - 1))
