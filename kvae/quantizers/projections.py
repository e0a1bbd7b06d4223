"""Learned linear layers around quantisers whose codewords and vectors differ in length."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kvae.core.errors import InputError
from kvae.quantizers.base import Quantizer, along_last_axis, check_dimension


class Projected(Quantizer):
    """Abstract quantiser that projects vectors to the length of its codewords, and codewords back to vectors.

    For vectors of length D and codewords of another length d, the collection `params` holds `project_in_kernel`
    [D, d], `project_in_bias` [d], `project_out_kernel` [d, D] and `project_out_bias` [D], all float32.
    """

    def declare_projections(self, z: jax.Array, dimension: int) -> None:
        """Creates the projections if vectors [..., D] and codewords of length d = `dimension` differ in length.

        Call it in the compact method `quantize`.

        Raises:
          InputError: the layer's variables belong to vectors or codewords of another length.
        """
        if self.has_variable("params", "project_out_kernel"):
            kernel = self.get_variable("params", "project_out_kernel")
            self._check_kernel(kernel, dimension)
            check_dimension(z, kernel)
        elif z.shape[-1] != dimension and not self.is_initializing():
            raise InputError(
                f"z has {z.shape[-1]}-dimensional vectors and codewords have {dimension} dimensions, but the variables "
                f"have no projections; initialise the layer with {z.shape[-1]}-dimensional vectors"
            )
        if z.shape[-1] != dimension:
            for name, shape in (
                ("project_in", (z.shape[-1], dimension)),
                ("project_out", (dimension, z.shape[-1])),
            ):
                self.param(f"{name}_kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
                self.param(f"{name}_bias", nn.initializers.zeros, shape[1:], jnp.float32)

    def project_in(self, z: jax.Array) -> jax.Array:
        """Projects vectors to the length of the codewords: float [..., D] -> float32 [..., d]."""
        return self._project("project_in", z.astype(jnp.float32))

    def project_out(self, codewords: jax.Array) -> jax.Array:
        """Projects codewords to the length of the vectors: float32 [..., d] -> float32 [..., D]."""
        if self.has_variable("params", "project_out_kernel"):
            self._check_kernel(self.get_variable("params", "project_out_kernel"), codewords.shape[-1])
        return self._project("project_out", codewords)

    def _check_kernel(self, kernel: jax.Array, dimension: int) -> None:
        """Raises InputError unless `project_out_kernel` projects codewords of this dimension."""
        if len(kernel) != dimension:
            kind = type(self).__name__
            raise InputError(
                f"this {kind} has {dimension}-dimensional codewords, but its variables are for {len(kernel)} "
                f"dimensions; use the fields that the variables were made with, or initialise the {kind} again"
            )

    def _project(self, name: str, vectors: jax.Array) -> jax.Array:
        if not self.has_variable("params", f"{name}_kernel"):
            return vectors
        kernel, bias = (self.get_variable("params", f"{name}_{part}") for part in ("kernel", "bias"))
        return jnp.matmul(vectors, kernel, precision=jax.lax.Precision.HIGHEST) + along_last_axis(bias, vectors)
