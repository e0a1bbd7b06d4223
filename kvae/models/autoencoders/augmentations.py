"""Random changes of training images that leave them images, made on the device: see `Autoencoder.augmentations`.

Each takes a key and a batch, uint8 [b, h, w, 3], and returns one like it; every image has draws of its own.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kvae.core.errors import InputError


def flip_horizontal(key: jax.Array, images: jax.Array) -> jax.Array:
    """Swaps left and right of every second image."""
    return _where(jax.random.bernoulli(key, shape=images.shape[:1]), images[:, :, ::-1], images)


def rot90(key: jax.Array, images: jax.Array) -> jax.Array:
    """Turns square images by 0, 90, 180 or 270 degrees.

    Raises:
      InputError: the images are not square.
    """
    if images.shape[1] != images.shape[2]:
        raise InputError(f"augmentation 'rot90' takes square images; these are {images.shape[1]} x {images.shape[2]}")
    upright, half = jax.random.bernoulli(key, shape=(2, len(images)))
    images = _where(half, images[:, ::-1, ::-1], images)
    return _where(upright, images, jnp.rot90(images, axes=(1, 2)))


def translate(key: jax.Array, images: jax.Array) -> jax.Array:
    """Moves images by up to an eighth of their height and width; what comes in at the border is its mirror image."""
    height, width = images.shape[1:3]
    margins = height // 8, width // 8
    padded = jnp.pad(images, ((0, 0), *((margin, margin) for margin in margins), (0, 0)), mode="reflect")
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * jnp.array(margins) + 1)

    def cut(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, 0), (height, width, image.shape[-1]))

    return jax.vmap(cut)(padded, corners)


def _where(chosen, images, others):
    return jnp.where(chosen[:, None, None, None], images, others)


AUGMENTATIONS = {"flip_horizontal": flip_horizontal, "rot90": rot90, "translate": translate}


def augment(key: jax.Array, images: jax.Array, names: Sequence[str]) -> jax.Array:
    """Images after the augmentations of these names, one after the other: uint8 [b, h, w, 3]."""
    for name, own_key in zip(names, jax.random.split(key, len(names) or 1), strict=False):
        images = AUGMENTATIONS[name](own_key, images)
    return images
