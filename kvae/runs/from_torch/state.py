"""Reads PyTorch state dicts as NumPy arrays without running code that a file may contain."""

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

NEIGHBORHOODS_OF_RELEASE = {"hard": "hard", "none": "none", "gaussian": "exponential"}
"""kvae's neighbourhood by its name in the authors' release, whose "gaussian" is exponential in the distance."""


def read_state(path: pathlib.Path) -> tuple[State, dict[str, Any]]:
    """Reads a state dict.

    Args:
      path: A .safetensors file, or any file that `torch.load` reads.

    Returns:
      The arrays, and the arguments of the authors' program if the file is one of its checkpoints, otherwise {}.

    Raises:
      InputError: The file cannot be read or does not hold a state dict.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    if path.suffix == ".safetensors":
        return read_weights(path)[0], {}
    loaded = _torch_load(path)
    arguments: Mapping = {}
    if isinstance(loaded, Mapping) and isinstance(loaded.get("model"), Mapping):
        arguments, loaded = (loaded.get("run_invariants") or {}).get("args") or {}, loaded["model"]
    if not isinstance(loaded, Mapping) or not loaded or not all(hasattr(value, "numpy") for value in loaded.values()):
        raise InputError(f"{path} does not hold a state dict; save one with torch.save(model.state_dict(), FILE)")
    # Data-parallel training adds a prefix to each name.
    return {name.removeprefix("module."): value.float().numpy() for name, value in loaded.items()}, dict(arguments)


def _torch_load(path: pathlib.Path) -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path} needs PyTorch, which is not installed: pip install torch, or convert the file where it is: "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        ) from error
    # The authors' checkpoints hold counters in this class; a plain dict replaces it.
    dict_classes = [(dict, "framework.data_structures.dotdict.DotDict")]
    try:
        with torch.serialization.safe_globals(dict_classes):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is not a file of weights only; other objects could run code when loaded: save the model with "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{path} is not a readable file of PyTorch weights ({first_line(error)[:200]}); get it again"
        ) from error


def quantizer_fields(arguments: Mapping[str, Any], codebook_size: int) -> dict[str, Any]:
    """Returns the fields of a quantiser from the arguments of the authors' program; {} if there are none.

    Args:
      arguments: By name, such as `vq_vae.grid_dim`.
      codebook_size: K.
    """
    prefix = "vq_vae."
    values = {name.removeprefix(prefix): value for name, value in arguments.items() if name.startswith(prefix)}
    if not values:
        return {}
    return {
        "grid_shape": grid_shape(codebook_size, values["grid_dim"]),
        "neighborhood": NEIGHBORHOODS_OF_RELEASE[values["neihborhood"]],
        "shrink_step": float(values["count_unit"]),
        "decay": float(values["decay"]),
        "commitment_weight": float(values["commitment_cost"]),
        "init_count": float(values["magic_counter_init"]),
        "update_empty": values["quantizer"] != "hardsom_noupdate_zero",
        "neighbor_weight": float(values["som_cost"]),
    }


def grid_shape(size: int, axes: int) -> tuple[int, ...]:
    """Returns the shape of the release's grid; its codes are numbered along the last axis first.

    Example:
      >>> grid_shape(512, 2)
      (16, 32)
    """
    if axes == 1:
        return (size,)
    shortest = next(n for n in range(math.ceil(size ** (1 / axes)), 0, -1) if size % n == 0)
    return (shortest, *grid_shape(size // shortest, axes - 1))
