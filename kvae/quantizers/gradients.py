"""Gradient estimators: how gradients pass through the choice of the nearest codeword."""

import jax
import jax.numpy as jnp

from kvae import kohonen


def straight_through(z: jax.Array, nearest: jax.Array) -> jax.Array:
    """Returns the nearest codewords; their gradient passes unchanged to z (van den Oord et al., 2017)."""
    return _with_gradient_of(z, nearest)


def rotation(z: jax.Array, nearest: jax.Array) -> jax.Array:
    """Returns the nearest codewords, with the gradient of the rotation trick (Fifty et al., 2024).

    The gradient is computed as if z were rotated and scaled to its codeword w. With e = z / |z|, q = w / |w| and r the
    unit vector of e + q, it is the gradient of (|w| / |z|) (z - 2 (r . z) r + 2 (e . z) q), where |w| / |z|, r, e and q
    are constants.
    """
    stop, nearest = jax.lax.stop_gradient, jax.lax.stop_gradient(nearest)
    e, q = kohonen.unit(stop(z)), kohonen.unit(nearest)
    r, scale = kohonen.unit(e + q), _length(nearest) / jnp.maximum(_length(stop(z)), kohonen.EPSILON)

    def component(direction):
        return jnp.sum(direction * z, axis=-1, keepdims=True)

    return _with_gradient_of(scale * (z - 2 * component(r) * r + 2 * component(e) * q), nearest)


def diveq(z: jax.Array, nearest: jax.Array) -> jax.Array:
    """Returns the nearest codewords, with the gradient of DiVeQ (Vali et al., 2025, arXiv:2509.26469).

    The gradient is computed from w = z + |w - z| u, where the direction u = (w - z) / |w - z| is a constant. z
    therefore gets the gradient without its component along u, and a codebook learned by gradients gets that component.
    The paper adds noise of variance 1e-3 to the direction. Here there is no noise, so the decoder sees the same
    codewords in training and in evaluation.
    """
    error = nearest - z
    direction = jax.lax.stop_gradient(kohonen.unit(error))
    length = jnp.sum(error * direction, axis=-1, keepdims=True)
    return _with_gradient_of(z + length * direction, nearest)


def _with_gradient_of(carrier: jax.Array, nearest: jax.Array) -> jax.Array:
    # Adding x - sg(x), which is 0, keeps the values exact.
    return jax.lax.stop_gradient(nearest) + (carrier - jax.lax.stop_gradient(carrier))


def _length(vectors: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True))


GRADIENTS = {"straight_through": straight_through, "rotation": rotation, "diveq": diveq}
"""Maps the values of the field `gradient` to functions of (z, nearest codewords)."""
