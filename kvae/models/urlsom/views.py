"""The random views of an image on which URL-SOM is trained (Section V.A of Kermiche, 2021), made on the device.

Pure functions of a key and one image, float32 [h, w, 3] from 0 to 1, for `jax.vmap`. The transformations are those of
SimCLR (Chen et al., 2020). The paper gives their ranges, not their order, which here is: crop, flip, colours, grey.
"""

import dataclasses

import dm_pix
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which views there are; the defaults are the paper's for CIFAR-10.

    Attributes:
      crop_sizes: smallest and largest side of the square that is cut out, in pixels. A square that is larger than the
        image shows it smaller, on black.
      flip_probability: of swapping left and right.
      jitter: how far brightness, contrast, saturation (as factors 1 +- jitter) and hue (+- jitter turns) may move.
      jitter_probability: of changing the colours at all.
      greyscale_probability: of leaving out the colours.
    """

    crop_sizes: tuple[int, int] = (22, 32)
    flip_probability: float = 0.5
    jitter: float = 0.4
    jitter_probability: float = 0.8
    greyscale_probability: float = 0.5


def view(key: jax.Array, image: jax.Array, augmentation: Augmentation) -> jax.Array:
    """A random view of an image: float32 [h, w, 3], from 0 to 1, another for every key."""
    crop_key, flip_key, jitter_key, grey_key = jax.random.split(key, 4)
    image = crop(crop_key, image, *augmentation.crop_sizes)
    flips = jax.random.bernoulli(flip_key, augmentation.flip_probability)
    image = jnp.where(flips, image[:, ::-1], image)
    jitter_key, jitters_key = jax.random.split(jitter_key)
    jitters = jax.random.bernoulli(jitters_key, augmentation.jitter_probability)
    image = jnp.where(jitters, jitter_colors(jitter_key, image, augmentation.jitter), image)
    is_grey = jax.random.bernoulli(grey_key, augmentation.greyscale_probability)
    return jnp.where(is_grey, dm_pix.rgb_to_grayscale(image, keep_dims=True), image)


def crop(key: jax.Array, image: jax.Array, smallest: int, largest: int) -> jax.Array:
    """A random square with a side of `smallest` to `largest` pixels, resized (bilinearly) to the size of the image."""
    size_key, offset_key = jax.random.split(key)
    shape = jnp.asarray(image.shape[:2], jnp.float32)
    side = jax.random.randint(size_key, (), smallest, largest + 1).astype(jnp.float32)
    offset = jax.random.uniform(offset_key, (2,)) * (shape - side)
    scale = shape / side
    return jax.image.scale_and_translate(image, image.shape, (0, 1), scale, -offset * scale, "linear")


def jitter_colors(key: jax.Array, image: jax.Array, strength: float) -> jax.Array:
    """Brightness, contrast, saturation and hue, each moved by up to `strength`; every result is clipped to 0 to 1."""
    keys = jax.random.split(key, 4)
    brightness, contrast, saturation = (
        jax.random.uniform(factor_key, (), minval=max(0.0, 1 - strength), maxval=1 + strength)
        for factor_key in keys[:3]
    )
    turn = jax.random.uniform(keys[3], (), minval=-strength, maxval=strength)
    image = jnp.clip(image * brightness, 0, 1)
    image = jnp.clip(dm_pix.adjust_contrast(image, contrast), 0, 1)
    image = dm_pix.adjust_saturation(image, saturation)
    return jnp.clip(dm_pix.adjust_hue(image, turn), 0, 1)
