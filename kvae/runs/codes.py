"""Validates the images and codes that a user passes to a model, and moves codes along the grid."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kvae.core.code_range import first_outside
from kvae.core.errors import InputError, check_names, choose, short_repr
from kvae.core.image_arrays import check_images
from kvae.grids import Grid
from kvae.models.model import Model
from kvae.quantizers.base import Quantizer


def validate_images(images: Any) -> np.ndarray:
    """Returns images as a uint8 array [b, h, w, 3].

    Raises:
      InputError: The images have another type or shape; the message suggests a conversion.
    """
    array = _to_array("images", images)
    check_images("images", array)
    return array


def validate_codes(model: Model, codes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns codes by codebook as int32 arrays.

    Args:
      model: A model with `quantizers`.
      codes: By codebook, integers [b, h', w'], or [b, h', w', q] for a quantiser with q codebooks.

    Raises:
      InputError: A codebook is missing, an array has the wrong type or shape, the arrays belong to images of different
        sizes, or a code is outside 0 to K - 1.
    """
    if not isinstance(codes, Mapping):
        kind = type(codes).__name__
        raise InputError(f"codes is a {kind}; it must be a dict of arrays by codebook, as `encode` returns it")
    check_names("codes", codes, model.quantizers)
    arrays, image_shapes = {}, {}
    for name, layer in model.quantizers.items():
        if name not in codes:
            raise InputError(f"codes lack the codebook {name!r}")
        arrays[name] = _validate_codebook(name, layer, codes[name])
        stride = model.code_strides[name]
        batch, height, width = arrays[name].shape[:3]
        image_shapes[name] = (batch, height * stride, width * stride)
    if len(set(image_shapes.values())) > 1:
        shapes = ", ".join(f"{name!r} {list(array.shape)}" for name, array in arrays.items())
        raise InputError(f"codes belong to images of different sizes: {shapes}")
    return arrays


def _validate_codebook(name: str, layer: Quantizer, codes: Any) -> np.ndarray:
    array = _to_array(f"codes of {name!r}", codes)
    last = [] if layer.n_codebooks is None else [layer.n_codebooks]
    fits = array.ndim == 3 + len(last) and list(array.shape[3:]) == last
    if array.dtype.kind not in "iu" or not fits or not array.size:
        expected = f"int [b, h, w{''.join(f', {q}' for q in last)}]"
        hint = "; for a single image pass codes[None]" if array.ndim == 2 + len(last) else ""
        raise InputError(f"codes of {name!r} are {array.dtype}{list(array.shape)}; they must be {expected}{hint}")
    position = first_outside(array, layer.codebook_size)
    if position is not None:
        allowed = f"they must be from 0 to {layer.codebook_size - 1}"
        raise InputError(f"codes of {name!r} have {array[position]} at {list(position)}; {allowed}")
    return array.astype(np.int32)


def _to_array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # NumPy raises several types, and an object's own __array__ may raise any
        raise InputError(f"{name} are {short_repr(value)}, which NumPy cannot convert to an array") from error


def codes_near(model: Model, code: int, radius: float, codebook: str | None) -> np.ndarray:
    """Returns int32 [n], the codes within `radius` of a code, nearest first; see `kvae.runs.Run.codes_near`."""
    if codebook is None and len(model.quantizers) > 1:
        raise InputError(f"codebook is missing; it must be one of {', '.join(model.quantizers)}")
    codebook = next(iter(model.quantizers)) if codebook is None else codebook
    layer = choose("codebook", codebook, model.quantizers)
    grid = _grid(codebook, layer)
    if not isinstance(code, (int, np.integer)):
        raise InputError(f"code is {short_repr(code)}; it must be an integer")
    if not 0 <= code < layer.codebook_size:
        raise InputError(f"code is {code}; codes of {codebook!r} must be from 0 to {layer.codebook_size - 1}")
    distances = np.asarray(grid.distance(np.int32(code), np.arange(grid.size)))
    order = np.argsort(distances, kind="stable")
    return order[distances[order] < radius].astype(np.int32)


def interpolate(
    model: Model, codes_a: Mapping[str, Any], codes_b: Mapping[str, Any], steps: int
) -> list[dict[str, np.ndarray]]:
    """Returns a list of codes from `codes_a` to `codes_b` along the grid; see `kvae.runs.Run.interpolate`."""
    codes_a, codes_b = validate_codes(model, codes_a), validate_codes(model, codes_b)
    for name, array in codes_a.items():
        if array.shape != codes_b[name].shape:
            shapes = f"{list(array.shape)} and {list(codes_b[name].shape)}"
            raise InputError(f"codes of {name!r} have different shapes: {shapes}")
    if steps < 2:
        raise InputError(f"steps is {steps}; it must be an integer >= 2, because both ends are included")
    grids = {name: _grid(name, layer) for name, layer in model.quantizers.items()}
    return [
        {name: np.asarray(grid.between(codes_a[name], codes_b[name], fraction)) for name, grid in grids.items()}
        for fraction in np.linspace(0, 1, steps).tolist()
    ]


def _grid(name: str, layer: Quantizer) -> Grid:
    if layer.grid is None:
        raise InputError(f"the codebook {name!r} has no grid ({type(layer).__name__}), so its codes have no neighbours")
    return layer.grid
