"""Converts the weights of published PyTorch models to runs."""

import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax
import numpy as np

from kvae.core.errors import InputError, short_repr
from kvae.core.fields import LARGEST_COUNT, fields_of, validate
from kvae.core.files import user_path
from kvae.quantizers import QUANTIZERS
from kvae.runs.from_torch.architectures import ARCHITECTURES, ORIGINS, Architecture, Origin
from kvae.runs.from_torch.state import State, quantizer_fields, read_state
from kvae.runs.run import Run
from kvae.runs.share import check_variables
from kvae.training.config.sections import build_model, validate_config

KERNEL_AXES = (2, 3, 1, 0)
"""Axis order that turns PyTorch's kernels [out, in, h, w] into kvae's [h, w, in, out].

For transposed convolutions it turns [in, out, h, w] into [h, w, out, in].
"""

TRAINED_LEAVES = {"kohonen": (), "gradient": ("codewords",)}
"""Arrays of a codebook that are parameters, by quantiser; its other arrays are in the collection `codebook`."""


def from_torch(
    path: os.PathLike | str,
    *,
    mean: Iterable[float] | None = None,
    std: Iterable[float] | None = None,
    size: int | None = None,
    quantizer: Mapping[str, Any] | None = None,
) -> Run:
    """Opens a published PyTorch model as a run.

    Supports the VQ-VAE and VQ-VAE-2 of the authors' release (github.com/IDSIA/kohonen-vae), the VQ-VAE-2 of
    rosinality/vq-vae-2-pytorch, and the VQ-VAE of zalandoresearch/pytorch-vq-vae. The weights determine the layers.

    Example:
      >>> import kvae
      >>> run = kvae.from_torch("tests/pytorch/zalandoresearch.safetensors")
      >>> run.codebooks["codebook"].shape
      (16, 4)

    Args:
      path: A .safetensors file of a state dict, or a `torch.save` file of a state dict or a checkpoint of the authors'
        release. A `torch.save` file needs PyTorch; it is loaded with `weights_only=True`, so code in it never runs.
      mean: Mean of each channel, on the 0-255 scale, that normalised the training images. Required for the authors'
        release, whose files do not contain it: (127.5, 127.5, 127.5) for faces, (123.675, 116.28, 103.53) for
        ImageNet, and the values in mean_std.pth for CIFAR-10.
      std: Standard deviation of each channel, on the same scale: (127.5, 127.5, 127.5) for faces,
        (58.395, 57.12, 57.375) for ImageNet, and the values in mean_std.pth for CIFAR-10.
      size: Edge of the images in pixels. By default 32 for a VQ-VAE and 256 for a VQ-VAE-2.
      quantizer: Fields of `config.model.quantizer` that the weights do not contain, such as grid_shape and
        neighborhood. A checkpoint of the authors' release contains them; for other files the grid is a line by default.

    Raises:
      InputError: The file cannot be read, has an unknown architecture, or needs `mean` and `std`.
    """
    path = user_path("the PyTorch model", path)
    if not isinstance(quantizer, Mapping | None):
        raise InputError(f"quantizer is {short_repr(quantizer)}; it must be a dict of fields")
    state, arguments = read_state(path)
    architecture = next((known for known in ARCHITECTURES if known.marker in state), None)
    if architecture is None:
        names = ", ".join(sorted(state)[:3])
        raise InputError(
            f"{path} has an unknown architecture with {names}, ...; help(kvae.from_torch) lists those supported"
        )
    origin = _find_origin(path, state, architecture)
    blocks = sum(bool(re.fullmatch(architecture.blocks, name)) for name in state)
    params = _take_layers(path, state, architecture.layers(blocks))  # removes its arrays from `state`
    codebooks = {slot: _take_codebook(path, state, name, origin) for slot, name in architecture.quantizers.items()}
    if state:
        raise InputError(f"{path} has an unknown architecture: {min(state)} is not part of a {architecture.model}")
    section = _model_fields(params, architecture, blocks)
    for slot, codebook in codebooks.items():
        section[slot] = _quantizer_section(codebook, origin, arguments) | (quantizer or {})
    step = max(int(codebook["step"]) for codebook in codebooks.values())
    dataset = {"name": "folder", "size": architecture.size if size is None else size, "crop": origin.crop, "path": ""}
    dataset |= _statistics(path, origin, mean, std)
    config = validate_config({"steps": max(step, 1), "batch_size": 64, "dataset": dataset, "model": section})
    model, variables = build_model(config), _variables(params, codebooks, origin)
    check_variables(model, variables, str(path))
    return Run(str(path), config, step, model, variables)


def _find_origin(path: pathlib.Path, state: State, architecture: Architecture) -> Origin:
    quantizer = next(iter(architecture.quantizers.values()))
    for origin in ORIGINS.values():
        if all(f"{quantizer}.{leaf}" in state for leaf in origin.leaves.values()):
            return origin
    names = ", ".join(name for name in sorted(state) if name.startswith(f"{quantizer}.")) or "none"
    raise InputError(f"{path} has an unknown architecture: the arrays of its quantiser {quantizer} are {names}")


def _take(path: pathlib.Path, state: State, name: str) -> np.ndarray:
    if name not in state:
        raise InputError(f"{path} has an unknown architecture or is incomplete: it lacks {name}")
    return state.pop(name)


def _take_layers(path: pathlib.Path, state: State, layers: Mapping[str, str]) -> State:
    """Removes kernels and biases from the state and returns them by their paths in kvae."""
    params = {}
    for name, torch_name in layers.items():
        weight = _take(path, state, f"{torch_name}.weight")
        if weight.ndim != 4:
            shape = list(weight.shape)
            raise InputError(
                f"{path} has an unknown architecture: {torch_name}.weight has shape {shape}; it must have 4 axes"
            )
        params[f"{name}.kernel"] = np.ascontiguousarray(weight.transpose(KERNEL_AXES))
        if f"{torch_name}.bias" in state:
            params[f"{name}.bias"] = state.pop(f"{torch_name}.bias")
    return params


def _take_codebook(path: pathlib.Path, state: State, quantizer: str, origin: Origin) -> State:
    """Removes the arrays of a codebook from the state and returns them by their names in kvae."""
    arrays = {name: _take(path, state, f"{quantizer}.{leaf}") for name, leaf in origin.leaves.items()}
    if origin.transposed:
        arrays = {name: np.ascontiguousarray(array.T) for name, array in arrays.items()}
    if arrays["codewords"].ndim != 2:
        leaf = f"{quantizer}.{origin.leaves['codewords']}"
        raise InputError(f"{path}: {leaf} has the shape {list(arrays['codewords'].shape)}; it must be [K, d]")
    step = arrays.get("step", np.int32(0))
    if step.size != 1 or not 0 <= step.item() <= LARGEST_COUNT:
        leaf = f"{quantizer}.{origin.leaves['step']}"
        raise InputError(f"{path}: {leaf} is {short_repr(step.tolist())}; it must be a number of steps")
    return {**arrays, "step": step.reshape(()).astype(np.int32)}


def _model_fields(params: State, architecture: Architecture, blocks: int) -> dict[str, Any]:
    """Returns the fields of the model that the shapes of its kernels determine."""
    encoder = "encoder" if "encoder.Conv_2.kernel" in params else "encoder_bottom"
    block = params.get(f"{encoder}.ResidualBlock_0.Conv_0.kernel")
    return {
        "name": architecture.model,
        "channels": params[f"{encoder}.Conv_2.kernel"].shape[-1],
        "residual_channels": 1 if block is None else block.shape[-1],
        "residual_blocks": blocks,
        "embedding_dim": params["decoder.Conv_0.kernel"].shape[-2] // len(architecture.quantizers),
    }


def _quantizer_section(codebook: State, origin: Origin, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config section of a quantiser, including its name."""
    count = len(codebook["codewords"])
    fields = {"grid_shape": (count,), **origin.fields, **quantizer_fields(arguments, count)}
    known = fields_of(QUANTIZERS[origin.quantizer])
    return {"name": origin.quantizer, **{name: fields[name] for name in fields if name in known}}


def _statistics(
    path: pathlib.Path, origin: Origin, mean: Iterable[float] | None, std: Iterable[float] | None
) -> dict[str, tuple[float, ...]]:
    """Returns mean and std of each channel: the arguments if they are not None, otherwise the origin's."""
    defaults = origin.statistics or (None, None)
    statistics = {}
    for name, values, default in (("mean", mean, defaults[0]), ("std", std, defaults[1])):
        if values is None and default is None:
            raise InputError(
                f"{path} does not contain the {name} of its images; pass {name}=(r, g, b), see help(kvae.from_torch)"
            )
        if isinstance(values, Iterable) and not isinstance(values, str) and getattr(values, "ndim", 1):
            values = tuple(value.item() if hasattr(value, "item") else value for value in values)
        statistics[name] = (default,) * 3 if values is None else validate(name, values, tuple[float, float, float])
    return statistics


def _variables(params: State, codebooks: dict[str, State], origin: Origin) -> dict[str, Any]:
    """Returns the variables of the model; arrays of the codebooks that gradients train are moved to the parameters."""
    for slot, codebook in codebooks.items():
        params |= {f"{slot}.{leaf}": codebook.pop(leaf) for leaf in TRAINED_LEAVES[origin.quantizer]}
    return {"params": flax.traverse_util.unflatten_dict(params, sep="."), "codebook": codebooks}
