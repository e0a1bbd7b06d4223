"""The cost of a quantiser by itself, and beside those of vector-quantize-pytorch where that is installed."""

import importlib.util
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kvae.benchmark.timing import median_seconds, say
from kvae.quantizers import FSQ, GradientVQ, GroupedVQ, KohonenVQ, ResidualVQ

SCALES = [(4_096, 512), (16_384, 512), (65_536, 512), (262_144, 512), (4_096, 2_048), (4_096, 8_192), (4_096, 65_536)]
"""The (N, K) of `--scaling`."""


def layer_seconds(layer, z: jax.Array) -> tuple[float, int]:
    """Seconds of a quantiser's training step on z [..., d], and its temporary memory in bytes."""
    variables = layer.init(jax.random.key(0), jnp.zeros((1, z.shape[-1])))

    def step(variables, z):
        out, updated = layer.apply(variables, z, train=True, mutable=["codebook"])
        return out.codes, out.loss, updated

    program = jax.jit(step).lower(variables, z).compile()
    return median_seconds(program, variables, z), program.memory_analysis().temp_size_in_bytes


def scaling() -> dict[str, dict]:
    """Time and memory of the quantiser against N and K, with d = 64 and a hard neighbourhood."""
    rows = {}
    for count, size in SCALES:
        say(f"N = {count:,}, K = {size:,}")
        z = jnp.asarray(np.random.default_rng(0).standard_normal((count, 64), np.float32))
        side = 2 ** (int(math.log2(size)) // 2)
        seconds, temporary = layer_seconds(KohonenVQ((side, size // side)), z)
        rows[f"{count:,} x {size:,}"] = {
            "milliseconds": seconds * 1e3,
            "picoseconds_per_distance": seconds * 1e12 / (count * size),
            "temporary_mebibytes": temporary / 2**20,
            "of_one_N_x_K_array": temporary / (4 * count * size),
        }
    return rows


SHAPES = [(16_384, 64, (16, 32)), (65_536, 64, (64, 128))]
"""The N, d and grid of `--quantizers`."""

LAYERS = {
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
"""By name, what `--quantizers` times: one step forward and backward, and the update."""


def peers(size: int, dimension: int) -> dict[str, Callable]:
    """By the same names, the layers of vector-quantize-pytorch; nothing where it is not installed."""
    if importlib.util.find_spec("vector_quantize_pytorch") is None:
        return {}
    import vector_quantize_pytorch as vqp

    common = dict(dim=dimension, codebook_size=size, decay=0.99, rotation_trick=False, threshold_ema_dead_code=0)
    learned = dict(learnable_codebook=True, ema_update=False, rotation_trick=False, threshold_ema_dead_code=0)
    levels = {512: [8, 8, 8], 8_192: [8, 8, 8, 4, 4]}[size]
    found = {
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
        del found["grouped, 4"]  # takes more than 20 GB
    return found


def quantizers(seconds: float) -> dict[str, dict]:
    """Milliseconds of a step of each layer, in turns with its peer: medians, and their ratio.

    Args:
      seconds: how long each layer is timed at each shape.
    """
    rows = {}
    for count, dimension, grid in SHAPES:
        z = np.random.default_rng(0).standard_normal((count, dimension), np.float32)
        others = peers(math.prod(grid), dimension)
        for name, make in LAYERS.items():
            label = f"{name}, {count:,} into {math.prod(grid):,}"
            say(label)
            steps = [step_of(make(grid), z)] + ([peer_step(others[name](), z)] if name in others else [])
            taken, deadline = [[] for _ in steps], time.perf_counter() + seconds
            while time.perf_counter() < deadline or len(taken[0]) < 3:
                for step, times in zip(steps, taken, strict=True):
                    started = time.perf_counter()
                    step()
                    times.append(time.perf_counter() - started)
            ours, *theirs = (float(np.median(times)) * 1e3 for times in taken)
            rows[label] = {"milliseconds": ours}
            if theirs:
                rows[label] |= {"vector_quantize_pytorch": theirs[0], "ratio": ours / theirs[0]}
    return rows


def step_of(layer, z: np.ndarray) -> Callable[[], None]:
    """A step of a layer: forward, backward to the vectors, and the update."""
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


def peer_step(layer, z: np.ndarray) -> Callable[[], None]:
    """The same of a layer of vector-quantize-pytorch."""
    import torch

    z = torch.tensor(z)[None]

    def step():
        vectors = z.clone().requires_grad_()
        quantized, _, *loss = layer(vectors)
        (torch.sum(quantized * z) + sum(part.sum() for part in loss)).backward()

    step()
    return step
