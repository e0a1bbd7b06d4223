"""Times quantisers alone, and compares them with vector-quantize-pytorch's if it is installed."""

import importlib.util
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kvae.benchmark.timing import log_progress, median_seconds
from kvae.quantizers import FSQ, GradientVQ, GroupedVQ, KohonenVQ, Quantizer, ResidualVQ

SCALING_SIZES = [
    (4_096, 512),
    (16_384, 512),
    (65_536, 512),
    (262_144, 512),
    (4_096, 2_048),
    (4_096, 8_192),
    (4_096, 65_536),
]
"""Pairs (N, K) that `--scaling` times."""


def layer_seconds(layer: Quantizer, z: jax.Array) -> tuple[float, int]:
    """Times a quantiser's forward pass in training, including the update of its codebook.

    Args:
      layer: The quantiser.
      z: Vectors, float32 [..., d].

    Returns:
      The median seconds of a pass, and its temporary memory in bytes.
    """
    variables = layer.init(jax.random.key(0), jnp.zeros((1, z.shape[-1])))

    def step(variables, z):
        out, updated = layer.apply(variables, z, train=True, mutable=["codebook"])
        return out.codes, out.loss, updated

    program = jax.jit(step).lower(variables, z).compile()
    return median_seconds(program, variables, z), program.memory_analysis().temp_size_in_bytes


def time_scaling() -> dict[str, dict]:
    """Times the map for each (N, K) of `SCALING_SIZES`, with d = 64 and a hard neighbourhood."""
    rows = {}
    for count, size in SCALING_SIZES:
        log_progress(f"N = {count:,}, K = {size:,}")
        z = jnp.asarray(np.random.default_rng(0).standard_normal((count, 64), np.float32))
        side = 2 ** (int(math.log2(size)) // 2)
        seconds, temporary = layer_seconds(KohonenVQ((side, size // side)), z)
        rows[f"{count:,} x {size:,}"] = {
            "milliseconds": seconds * 1e3,
            "picoseconds_per_distance": seconds * 1e12 / (count * size),
            "temporary_mebibytes": temporary / 2**20,
            "share_of_one_N_x_K_array": temporary / (4 * count * size),
        }
    return rows


SHAPES = [(16_384, 64, (16, 32)), (65_536, 64, (64, 128))]
"""N, d and the grid shape of each case of `--quantizers`."""

LAYERS: dict[str, Callable[[tuple[int, ...]], Quantizer]] = {
    "map (hard)": lambda grid: KohonenVQ(grid),
    "map (Gaussian)": lambda grid: KohonenVQ(grid, "gaussian"),
    "EMA-VQ": lambda grid: KohonenVQ(grid, "none"),
    "EMA-VQ, restarts": lambda grid: KohonenVQ(grid, "none", restart_below=2.0),
    "EMA-VQ, cosine": lambda grid: KohonenVQ(grid, "none", metric="cosine"),
    "EMA-VQ, rotation trick": lambda grid: KohonenVQ(grid, "none", gradient="rotation"),
    "gradient": lambda grid: GradientVQ(grid),
    "FSQ": lambda grid: FSQ({512: (8, 8, 8), 8_192: (8, 8, 8, 4, 4)}[math.prod(grid)]),
    "residual, 4": lambda grid: ResidualVQ(KohonenVQ(grid, "none"), depth=4),
    "grouped, 4": lambda grid: GroupedVQ(KohonenVQ(grid, "none"), groups=4),
}
"""Maps the names of the quantisers that `--quantizers` times to functions of a grid shape that create them."""


def torch_layers(size: int, dimension: int) -> dict[str, Callable]:
    """Returns constructors of vector-quantize-pytorch's layers by the names of `LAYERS`; empty if it is not installed.

    Args:
      size: K, the number of codes.
      dimension: d, the dimension of the vectors.
    """
    if importlib.util.find_spec("vector_quantize_pytorch") is None:
        return {}
    import vector_quantize_pytorch as vqp

    common = dict(dim=dimension, codebook_size=size, decay=0.99, rotation_trick=False, threshold_ema_dead_code=0)
    learned = dict(learnable_codebook=True, ema_update=False, rotation_trick=False, threshold_ema_dead_code=0)
    levels = {512: [8, 8, 8], 8_192: [8, 8, 8, 4, 4]}[size]
    layers = {
        "EMA-VQ": lambda: vqp.VectorQuantize(**common),
        "EMA-VQ, restarts": lambda: vqp.VectorQuantize(**common | {"threshold_ema_dead_code": 2}),
        "EMA-VQ, cosine": lambda: vqp.VectorQuantize(**common, use_cosine_sim=True),
        "EMA-VQ, rotation trick": lambda: vqp.VectorQuantize(**common | {"rotation_trick": True}),
        "gradient": lambda: vqp.VectorQuantize(dim=dimension, codebook_size=size, **learned),
        "FSQ": lambda: vqp.FSQ(levels, dim=dimension),
        "residual, 4": lambda: vqp.ResidualVQ(num_quantizers=4, **common),
        "grouped, 4": lambda: vqp.VectorQuantize(**common, heads=4, separate_codebook_per_head=True),
    }
    if size > 512:
        del layers["grouped, 4"]  # needs more than 20 GB
    return layers


def time_layers(seconds: float) -> dict[str, dict]:
    """Times a training step of each layer, alternating with its PyTorch counterpart.

    Args:
      seconds: Time to spend on each layer at each shape.

    Returns:
      Median milliseconds, and their ratio to PyTorch's, by layer and shape.
    """
    rows = {}
    for count, dimension, grid in SHAPES:
        z = np.random.default_rng(0).standard_normal((count, dimension), np.float32)
        counterparts = torch_layers(math.prod(grid), dimension)
        for name, make in LAYERS.items():
            label = f"{name}, {count:,} into {math.prod(grid):,}"
            log_progress(label)
            steps = [step_of(make(grid), z)]
            steps += [torch_step(counterparts[name](), z)] if name in counterparts else []
            times, deadline = [[] for _ in steps], time.perf_counter() + seconds
            while time.perf_counter() < deadline or len(times[0]) < 3:
                for step, step_times in zip(steps, times, strict=True):
                    started = time.perf_counter()
                    step()
                    step_times.append(time.perf_counter() - started)
            milliseconds, *torch_milliseconds = (float(np.median(step_times)) * 1e3 for step_times in times)
            rows[label] = {"milliseconds": milliseconds}
            if torch_milliseconds:
                ratio = milliseconds / torch_milliseconds[0]
                rows[label] |= {"vector_quantize_pytorch": torch_milliseconds[0], "ratio": ratio}
    return rows


def step_of(layer: Quantizer, z: np.ndarray) -> Callable[[], None]:
    """Returns a function that runs a training step of a layer: forward pass, gradients and codebook update.

    Args:
      layer: The quantiser.
      z: Vectors, float32 [n, d].
    """
    state = {"variables": layer.init(jax.random.key(0), jnp.zeros((1, z.shape[-1])))}

    def loss(differentiable, collections, z):
        variables = {"params": differentiable[0], **collections}
        out, updated = layer.apply(variables, differentiable[1], train=True, mutable=["codebook"])
        return jnp.sum(out.quantized * z) + out.loss, updated

    @jax.jit
    def program(variables, z):
        collections = {name: tree for name, tree in variables.items() if name != "params"}
        (_, updated), gradients = jax.value_and_grad(loss, has_aux=True)(
            (variables.get("params", {}), z), collections, z
        )
        return {**variables, **updated}, gradients

    z = jnp.asarray(z)

    def step():
        state["variables"], gradients = program(state["variables"], z)
        jax.block_until_ready(gradients)

    step()
    return step


def torch_step(layer: Callable, z: np.ndarray) -> Callable[[], None]:
    """Returns a function that runs the same step as `step_of` with a layer of vector-quantize-pytorch."""
    import torch

    z = torch.tensor(z)[None]

    def step():
        vectors = z.clone().requires_grad_()
        quantized, _, *loss = layer(vectors)
        (torch.sum(quantized * z) + sum(part.sum() for part in loss)).backward()

    step()
    return step
