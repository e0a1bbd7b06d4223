"""Weights of PyTorch models as a run: `kvae.from_torch(path)`."""

import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax
import numpy as np

from kvae.core.errors import InputError
from kvae.core.fields import fields_of
from kvae.models import QUANTIZERS
from kvae.runs.from_torch.architectures import ARCHITECTURES, ORIGINS, Architecture, Origin
from kvae.runs.from_torch.state import quantizer_fields, read_state
from kvae.runs.run import Run
from kvae.runs.share import check_variables
from kvae.training.config.sections import build_model, validate_config

KERNEL_AXES = (2, 3, 1, 0)
"""From [out, in, h, w] of PyTorch's convolutions, and [in, out, h, w] of its transposed ones, to ours."""

IN_PARAMS = {"kohonen": (), "gradient": ("codewords",)}
"""By quantiser, which arrays of its codebook are parameters; the others are in the collection `codebook`."""


def from_torch(
    path: os.PathLike | str,
    *,
    mean: Iterable[float] | None = None,
    std: Iterable[float] | None = None,
    size: int | None = None,
    quantizer: Mapping[str, Any] | None = None,
) -> Run:
    """A run with the weights of a PyTorch model.

    Known are VQ-VAE and VQ-VAE-2 of the authors' release (github.com/IDSIA/kohonen-vae), VQ-VAE-2 of
    rosinality/vq-vae-2-pytorch and VQ-VAE of zalandoresearch/pytorch-vq-vae. Widths and depth are read off the weights.

    Args:
      path: a state dict as .safetensors; or a file of `torch.save`, with a state dict or a checkpoint of the release in
        it, which takes PyTorch and is loaded with `weights_only=True`: no code in it is run.
      mean, std: of each channel on the 0-255 scale, by which the images were normalised. The release keeps them
        elsewhere, so that they must be given: for faces 127.5 thrice and 127.5 thrice, for ImageNet
        (123.675, 116.28, 103.53) and (58.395, 57.12, 57.375), for CIFAR-10 what stands in its mean_std.pth.
      size: edge of the images in pixels; by default 32 for a VQ-VAE and 256 for a VQ-VAE-2.
      quantizer: fields of `config.model.quantizer` that weights do not tell, such as grid_shape and neighborhood. A
        checkpoint of the release tells them; otherwise the codes lie on a line.

    Raises:
      InputError: the file cannot be read, is of another architecture, or does not tell what is not given.
    """
    path = pathlib.Path(path)
    state, arguments = read_state(path)
    architecture = next((known for known in ARCHITECTURES if known.marker in state), None)
    if architecture is None:
        some = ", ".join(sorted(state)[:3])
        raise InputError(f"{path} is of another architecture: it has {some}, ...; kvae.from_torch names those it knows")
    origin = _origin(path, state, architecture)
    blocks = sum(bool(re.fullmatch(architecture.blocks, name)) for name in state)
    params = _layers(path, state, architecture.layers(blocks))
    codebooks = {slot: _codebook(path, state, theirs, origin) for slot, theirs in architecture.quantizers.items()}
    if state:
        raise InputError(f"{path} is of another architecture: it has {min(state)}, and a {architecture.model} has not")
    section = _widths(params, architecture, blocks)
    for slot, codebook in codebooks.items():
        count = len(codebook["codewords"])
        fields = {"grid_shape": (count,), **origin.fields, **quantizer_fields(arguments, count)}
        known = fields_of(QUANTIZERS[origin.quantizer])
        section[slot] = {"name": origin.quantizer, **{name: fields[name] for name in fields if name in known}}
        section[slot] |= quantizer or {}
    step = max(int(codebook["step"]) for codebook in codebooks.values())
    dataset = {"name": "folder", "size": size or architecture.size, "crop": origin.crop, "path": ""}
    dataset |= _statistics(path, origin, mean, std)
    config = validate_config({"steps": max(step, 1), "batch_size": 64, "dataset": dataset, "model": section})
    model, variables = build_model(config), _variables(params, codebooks, origin)
    check_variables(model, variables, str(path))
    return Run(str(path), config, step, model, variables)


def _origin(path, state, architecture: Architecture) -> Origin:
    theirs = next(iter(architecture.quantizers.values()))
    for origin in ORIGINS.values():
        if all(f"{theirs}.{leaf}" in state for leaf in origin.leaves.values()):
            return origin
    there = ", ".join(name for name in sorted(state) if name.startswith(f"{theirs}.")) or "nothing"
    raise InputError(
        f"{path} is of another architecture: its quantiser {theirs} has {there}, which none that is known has"
    )


def _take(path, state, name: str) -> np.ndarray:
    if name not in state:
        raise InputError(f"{path} is of another architecture, or incomplete: it lacks {name}")
    return state.pop(name)


def _layers(path, state, layers: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Kernels and biases by our paths; taken out of the state."""
    params = {}
    for ours, theirs in layers.items():
        weight = _take(path, state, f"{theirs}.weight")
        if weight.ndim != 4:
            raise InputError(f"{path} is of another architecture: {theirs}.weight is {list(weight.shape)}")
        params[f"{ours}.kernel"] = np.ascontiguousarray(weight.transpose(KERNEL_AXES))
        if f"{theirs}.bias" in state:
            params[f"{ours}.bias"] = state.pop(f"{theirs}.bias")
    return params


def _codebook(path, state, theirs: str, origin: Origin) -> dict[str, np.ndarray]:
    """The arrays of a codebook by our names; taken out of the state."""
    found = {ours: _take(path, state, f"{theirs}.{leaf}") for ours, leaf in origin.leaves.items()}
    if origin.transposed:
        found = {name: np.ascontiguousarray(leaf.T) for name, leaf in found.items()}
    return {**found, "step": np.asarray(found.get("step", 0), np.int32)}


def _widths(params, architecture: Architecture, blocks: int) -> dict[str, Any]:
    """The fields of the model that shapes tell."""
    encoder = "encoder" if "encoder.Conv_2.kernel" in params else "encoder_bottom"
    block = params.get(f"{encoder}.ResidualBlock_0.Conv_0.kernel")
    return {
        "name": architecture.model,
        "channels": params[f"{encoder}.Conv_2.kernel"].shape[-1],
        "residual_channels": 1 if block is None else block.shape[-1],
        "residual_blocks": blocks,
        "embedding_dim": params["decoder.Conv_0.kernel"].shape[-2] // len(architecture.quantizers),
    }


def _statistics(path, origin: Origin, mean, std) -> dict[str, tuple[float, ...]]:
    known = origin.statistics or (None, None)
    found = {}
    for name, given, usual in (("mean", mean, known[0]), ("std", std, known[1])):
        if given is None and usual is None:
            raise InputError(
                f"{path} does not tell the {name} of its images; give {name}=(r, g, b), see kvae.from_torch"
            )
        found[name] = (usual,) * 3 if given is None else tuple(map(float, given))
    return found


def _variables(params, codebooks, origin: Origin) -> dict[str, Any]:
    learned = IN_PARAMS[origin.quantizer]
    for slot, codebook in codebooks.items():
        params |= {f"{slot}.{leaf}": codebook.pop(leaf) for leaf in learned}
    return {"params": flax.traverse_util.unflatten_dict(params, sep="."), "codebook": codebooks}
