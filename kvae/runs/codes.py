"""Images and codes that a user hands to a model: whether they fit; and codes that lie near others, or between them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kvae.core.errors import InputError, check_names, choose
from kvae.core.fields import short_repr
from kvae.grids import Grid
from kvae.models.model import Model


def validate_images(images) -> np.ndarray:
    """Images as uint8 [b, h, w, 3]; raises InputError, with what would do, if they are anything else."""
    found = _array("images", images)
    if found.dtype == np.uint8 and found.ndim == 4 and found.shape[-1] == 3 and found.size:
        return found
    hint = ""
    if found.dtype.kind in "OSU":
        hint = "; run.read_images makes that of files and of Pillow's images"
    elif found.dtype == np.uint8 and found.ndim == 3 and found.shape[-1] == 3:
        hint = "; a single image is images[None]"
    elif found.dtype == np.uint8 and found.ndim == 4 and found.shape[1] == 3:
        hint = "; channels come last: images.transpose(0, 2, 3, 1)"
    elif found.dtype.kind == "f":
        hint = ", from 0 to 255: of floats from 0 to 1, np.uint8(np.round(255 * images))"
    raise InputError(f"images are {found.dtype}{list(found.shape)}; they must be uint8[b, h, w, 3]{hint}")


def validate_codes(model: Model, codes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Codes by codebook, int32, that fit the model and each other.

    Raises:
      InputError: a codebook is missing, codes are no integers of a fitting shape, or one is not on its grid.
    """
    if not isinstance(codes, Mapping):
        found = type(codes).__name__
        raise InputError(f"codes are a {found}; they must be a dict of arrays by codebook, as `encode` gives them")
    check_names("codes", codes, model.quantizers)
    found, sizes = {}, {}
    for name, layer in model.quantizers.items():
        if name not in codes:
            raise InputError(f"codes lack the codebook {name!r}")
        array = _array(f"codes of {name!r}", codes[name])
        last = [] if layer.n_codebooks is None else [layer.n_codebooks]
        wanted = f"int [b, h, w{''.join(f', {q}' for q in last)}]"
        fits = array.ndim == 3 + len(last) and list(array.shape[3:]) == last
        if array.dtype.kind not in "iu" or not fits or not array.size:
            hint = "; a single image's are codes[None]" if array.ndim == 2 + len(last) else ""
            raise InputError(f"codes of {name!r} are {array.dtype}{list(array.shape)}; they must be {wanted}{hint}")
        _check_range(name, array, layer.codebook_size)
        found[name] = array.astype(np.int32)
        stride = model.code_strides[name]
        sizes[name] = (array.shape[0], array.shape[1] * stride, array.shape[2] * stride)
    if len(set(sizes.values())) > 1:
        shapes = ", ".join(f"{name!r} {list(array.shape)}" for name, array in found.items())
        raise InputError(f"codes are of different images: {shapes}")
    return found


def _array(what: str, value) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # NumPy raises several kinds, and an object's own __array__ any
        raise InputError(f"{what} are {short_repr(value)}, which is no array of one shape") from error


def _check_range(name: str, array: np.ndarray, size: int) -> None:
    if array.size and (array.min() < 0 or array.max() >= size):
        found = f"codes of {name!r} run from {array.min()} to {array.max()}; they"
        found = found if array.ndim else f"code is {array}; those of {name!r}"
        raise InputError(f"{found} must be in 0 to {size - 1}")


def near(model: Model, code: int, radius: float, codebook: str | None) -> np.ndarray:
    """The codes at a grid distance below `radius` from one, the nearest first: see `kvae.runs.run.Run.codes_near`."""
    if codebook is None and len(model.quantizers) > 1:
        raise InputError(f"codebook is not given; this model has {', '.join(model.quantizers)}")
    codebook = next(iter(model.quantizers)) if codebook is None else codebook
    layer = choose("codebook", codebook, model.quantizers)
    grid = _grid(codebook, layer)
    if not isinstance(code, (int, np.integer)):
        raise InputError(f"code is {short_repr(code)}; it must be an integer")
    _check_range(codebook, np.asarray(code), layer.codebook_size)
    distances = np.asarray(grid.distance(np.int32(code), np.arange(grid.size)))
    order = np.argsort(distances, kind="stable")
    return order[distances[order] < radius].astype(np.int32)


def between(model: Model, codes, others, steps: int) -> list[dict[str, np.ndarray]]:
    """Codes on the way from some to others: see `kvae.runs.run.Run.interpolate`."""
    codes, others = validate_codes(model, codes), validate_codes(model, others)
    for name, array in codes.items():
        if array.shape != others[name].shape:
            shapes = f"{list(array.shape)} and {list(others[name].shape)}"
            raise InputError(f"codes of {name!r} are of different shapes: {shapes}")
    if steps < 2:
        raise InputError(f"steps is {steps}; it must be 2 or larger: both ends are among them")
    grids = {name: _grid(name, layer) for name, layer in model.quantizers.items()}
    return [
        {name: np.asarray(grid.between(codes[name], others[name], share)) for name, grid in grids.items()}
        for share in np.linspace(0, 1, steps)
    ]


def _grid(name: str, layer) -> Grid:
    if layer.grid is None:
        raise InputError(f"the codes of {name!r} lie on no grid ({type(layer).__name__}): none is near another")
    return layer.grid
