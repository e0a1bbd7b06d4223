"""Reads PyTorch state dicts as NumPy arrays without running code that a file may contain."""

import math
import pathlib
import pickle
from collections.abc import Mapping
from typing import Annotated, Any

import annotated_types
import numpy as np

from kvae.core.errors import InputError, first_line, short_repr
from kvae.core.fields import NotNegative, OneOf, Probability, fields_of, validate_fields
from kvae.runs.share import read_weights

State = dict[str, np.ndarray]
"""Arrays by their names in PyTorch."""

NEIGHBORHOODS_OF_RELEASE = {"hard": "hard", "none": "none", "gaussian": "exponential"}
"""Maps the neighbourhoods of the authors' release to kvae's; its "gaussian" is exponential in the distance."""


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
        arrays = read_weights(path)[0]
        return {
            name: array if array.dtype.kind in "iu" else array.astype(np.float32) for name, array in arrays.items()
        }, {}
    return state_and_arguments(path, _torch_load(path))


def state_and_arguments(path: pathlib.Path, loaded: Any) -> tuple[State, dict[str, Any]]:
    """Returns the arrays and the arguments (see `read_state`) in an object that `torch.load` returned.

    Raises:
      InputError: The object is not a state dict or a checkpoint of the authors' release.
    """
    arguments: Any = {}
    if isinstance(loaded, Mapping) and isinstance(loaded.get("model"), Mapping):
        invariants = _dict_of_names(f"{path}: run_invariants", loaded.get("run_invariants"))
        arguments, loaded = _dict_of_names(f"{path}: run_invariants['args']", invariants.get("args")), loaded["model"]
    is_state = isinstance(loaded, Mapping) and all(
        isinstance(name, str) and hasattr(value, "numpy") for name, value in loaded.items()
    )
    if not is_state or not loaded:
        raise InputError(f"{path} does not hold a state dict; save one with torch.save(model.state_dict(), FILE)")
    # Data-parallel training adds a prefix to each name.
    return {name.removeprefix("module."): _to_array(path, name, value) for name, value in loaded.items()}, arguments


def _dict_of_names(where: str, value: Any) -> dict[str, Any]:
    """Returns the entries of a dict whose keys are strings; {} for None."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is {short_repr(value)}; it must be a dict")
    return {name: item for name, item in value.items() if isinstance(name, str)}


def _to_array(path: pathlib.Path, name: str, tensor: Any) -> np.ndarray:
    """Converts a tensor to float32 NumPy; it may require gradients, or be sparse or quantised."""
    try:
        tensor = tensor.detach()
        tensor = tensor.dequantize() if tensor.is_quantized else tensor
        return np.asarray(tensor.to_dense().float().numpy())
    except Exception as error:  # PyTorch raises several types; a meta tensor has no values
        raise InputError(
            f"{path}: {name} cannot be converted to an array ({first_line(error)[:200]}); save the weights with "
            "torch.save(model.cpu().state_dict(), FILE)"
        ) from error


def _torch_load(path: pathlib.Path) -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path} needs PyTorch, which is not installed: pip install torch, or convert the file on a machine with "
            "PyTorch: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        ) from error
    # The authors' checkpoints hold counters in this class; a plain dict replaces it.
    dict_classes = [(dict, "framework.data_structures.dotdict.DotDict")]
    try:
        with torch.serialization.safe_globals(dict_classes):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds objects other than weights, which could run code when loaded; save the weights with "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{path} is not a readable file of PyTorch weights ({first_line(error)[:200]}); copy or download it again"
        ) from error


def release_arguments(
    grid_dim: Annotated[int, annotated_types.Ge(1), annotated_types.Le(16)],
    neihborhood: Annotated[str, OneOf(NEIGHBORHOODS_OF_RELEASE)],
    count_unit: NotNegative,
    decay: Probability,
    commitment_cost: NotNegative,
    magic_counter_init: NotNegative,
    quantizer: str,
    som_cost: NotNegative,
) -> None:
    """Declares the arguments `vq_vae.<name>` of the authors' program that kvae reads; it ignores others."""


def quantizer_fields(arguments: Mapping[str, Any], codebook_size: int) -> dict[str, Any]:
    """Returns the fields of a quantiser from the arguments of the authors' program; {} if there are none.

    Args:
      arguments: By name, such as `vq_vae.grid_dim`.
      codebook_size: K.

    Raises:
      InputError: An argument is missing, of another type or out of range.
    """
    prefix = "vq_vae."
    values = {name.removeprefix(prefix): value for name, value in arguments.items() if name.startswith(prefix)}
    if not values:
        return {}
    known = fields_of(release_arguments)
    values = {name: value for name, value in values.items() if name in known}
    values = validate_fields("run_invariants['args'] vq_vae", values, release_arguments)
    return {
        "grid_shape": grid_shape(codebook_size, values["grid_dim"]),
        "neighborhood": NEIGHBORHOODS_OF_RELEASE[values["neihborhood"]],
        "shrink_step": values["count_unit"],
        "decay": values["decay"],
        "commitment_weight": values["commitment_cost"],
        "init_count": values["magic_counter_init"],
        "update_empty": values["quantizer"] != "hardsom_noupdate_zero",
        "neighbor_weight": values["som_cost"],
    }


def grid_shape(size: int, axes: int) -> tuple[int, ...]:
    """Returns the grid shape of the authors' program; the last axis varies fastest in the numbering of codes.

    Example:
      >>> grid_shape(512, 2)
      (16, 32)
    """
    if axes == 1:
        return (size,)
    shortest = next(n for n in range(math.ceil(size ** (1 / axes)), 0, -1) if size % n == 0)
    return (shortest, *grid_shape(size // shortest, axes - 1))
