"""The cost of a quantiser by itself."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from kvae.benchmark.timing import median_seconds, say
from kvae.models.quantizers import KohonenVQ
from kvae.training import devices

SCALES = [(4_096, 512), (16_384, 512), (65_536, 512), (262_144, 512), (4_096, 2_048), (4_096, 8_192), (4_096, 65_536)]
"""The (N, K) of `--scaling`."""


def layer_seconds(layer, z: jax.Array) -> tuple[float, int]:
    """Seconds of a quantiser's training step on z [..., d], and its temporary memory in bytes."""
    variables = layer.init(jax.random.key(0), jnp.zeros((1, z.shape[-1])))

    def step(variables, z):
        out, updated = layer.apply(variables, z, train=True, mutable=["codebook"])
        return out.codes, out.loss, updated

    program = jax.jit(step, compiler_options=devices.compiler_options()).lower(variables, z).compile()
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
