"""Random augmentations of training images, computed on the device; see `Autoencoder.augmentations`.

Each takes a key and a batch, uint8 [b, h, w, 3], and returns a batch of the same shape and dtype. Every image is
augmented independently.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from kvae.core.errors import InputError


def flip_horizontal(key: jax.Array, images: jax.Array) -> jax.Array:
    """Swaps left and right of each image with probability 1/2."""
    return _where(jax.random.bernoulli(key, shape=images.shape[:1]), images[:, :, ::-1], images)


def rot90(key: jax.Array, images: jax.Array) -> jax.Array:
    """Rotates each square image by 0, 90, 180 or 270 degrees, each with probability 1/4.

    Raises:
      InputError: the images are not square.
    """
    if images.shape[1] != images.shape[2]:
        raise InputError(
            f"images are {images.shape[1]} x {images.shape[2]}; they must be square for augmentation 'rot90'"
        )
    upright, half = jax.random.bernoulli(key, shape=(2, len(images)))
    images = _where(half, images[:, ::-1, ::-1], images)
    return _where(upright, images, jnp.rot90(images, axes=(1, 2)))


def translate(key: jax.Array, images: jax.Array) -> jax.Array:
    """Translates each image by up to an eighth of its height and width, and fills the border by reflection."""
    height, width = images.shape[1:3]
    margins = height // 8, width // 8
    padded = jnp.pad(images, ((0, 0), *((margin, margin) for margin in margins), (0, 0)), mode="reflect")
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * jnp.array([margins]) + 1)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), (height, width, image.shape[-1]))

    return jax.vmap(cut)(padded, corners)


def _where(chosen: jax.Array, images: jax.Array, others: jax.Array) -> jax.Array:
    """Returns `images` where `chosen`, bool [b], is True, else `others`."""
    return jnp.where(chosen[:, None, None, None], images, others)


AUGMENTATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "flip_horizontal": flip_horizontal,
    "rot90": rot90,
    "translate": translate,
}
"""The augmentations by name."""


def augment(key: jax.Array, images: jax.Array, names: Sequence[str]) -> jax.Array:
    """Applies augmentations one after another, each with its own key.

    Example:
      >>> import jax, numpy as np
      >>> augment(jax.random.key(0), np.zeros((2, 32, 32, 3), np.uint8), ("flip_horizontal", "translate")).shape
      (2, 32, 32, 3)

    Args:
      key: a random key.
      images: uint8 [b, h, w, 3].
      names: keys of `AUGMENTATIONS`, in the order in which they are applied.

    Returns:
      uint8 [b, h, w, 3].
    """
    for name, subkey in zip(names, jax.random.split(key, len(names) or 1), strict=False):
        images = AUGMENTATIONS[name](subkey, images)
    return images
