"""The random views of an image that URL-SOM is trained on (Section V.A of Kermiche, 2021), computed on the device.

The functions take a key and one image, float32 [h, w, 3] from 0 to 1; apply them to a batch with `jax.vmap`. The
transformations come from SimCLR (Chen et al., 2020). The paper gives their ranges but not their order. The order here
is crop, flip, colour jitter, greyscale.
"""

import dataclasses

import jax
import jax.numpy as jnp

from kvae.core.errors import require_extra


@dataclasses.dataclass(frozen=True)
class ViewSettings:
    """The distribution of views; the defaults are the paper's for CIFAR-10.

    Attributes:
      crop_sizes: smallest and largest side of the cropped square, in pixels. If the square is larger than the image,
        the view shows the image smaller, with a black border.
      flip_probability: probability of swapping left and right.
      jitter: largest change of brightness, contrast and saturation, as factors 1 +- jitter, and of hue, as a fraction
        of the colour circle.
      jitter_probability: probability of changing the colours at all.
      greyscale_probability: probability of removing the colours.
    """

    crop_sizes: tuple[int, int] = (22, 32)
    flip_probability: float = 0.5
    jitter: float = 0.4
    jitter_probability: float = 0.8
    greyscale_probability: float = 0.5


def random_view(key: jax.Array, image: jax.Array, settings: ViewSettings) -> jax.Array:
    """Returns a random view of an image.

    Args:
      key: a random key; each key gives another view.
      image: float32 [h, w, 3], from 0 to 1.
      settings: the distribution of views.

    Returns:
      float32 [h, w, 3], from 0 to 1.

    Raises:
      InputError: dm-pix is not installed.
    """
    with require_extra("train"):
        import dm_pix
    crop_key, flip_key, jitter_key, grey_key = jax.random.split(key, 4)
    image = random_crop(crop_key, image, *settings.crop_sizes)
    is_flipped = jax.random.bernoulli(flip_key, settings.flip_probability)
    image = jnp.where(is_flipped, image[:, ::-1], image)
    colors_key, coin_key = jax.random.split(jitter_key)
    is_jittered = jax.random.bernoulli(coin_key, settings.jitter_probability)
    image = jnp.where(is_jittered, jitter_colors(colors_key, image, settings.jitter), image)
    is_grey = jax.random.bernoulli(grey_key, settings.greyscale_probability)
    return jnp.where(is_grey, dm_pix.rgb_to_grayscale(image, keep_dims=True), image)


def random_crop(key: jax.Array, image: jax.Array, smallest: int, largest: int) -> jax.Array:
    """Crops a random square and resizes it, bilinearly, to the size of the image.

    Args:
      key: a random key.
      image: float32 [h, w, c].
      smallest, largest: range of the side of the square, in pixels, both ends included.

    Returns:
      float32 [h, w, c].
    """
    size_key, offset_key = jax.random.split(key)
    shape = jnp.asarray(image.shape[:2], jnp.float32)
    side = jax.random.randint(size_key, (), smallest, largest + 1).astype(jnp.float32)
    offset = jax.random.uniform(offset_key, (2,)) * (shape - side)
    scale = shape / side
    return jax.image.scale_and_translate(image, image.shape, (0, 1), scale, -offset * scale, "linear")


def jitter_colors(key: jax.Array, image: jax.Array, jitter: float) -> jax.Array:
    """Changes brightness, contrast, saturation and hue at random, and clips the values to 0 to 1.

    Args:
      key: a random key.
      image: float32 [h, w, 3], from 0 to 1.
      jitter: see `ViewSettings`.

    Returns:
      float32 [h, w, 3], from 0 to 1.

    Raises:
      InputError: dm-pix is not installed.
    """
    with require_extra("train"):
        import dm_pix
    keys = jax.random.split(key, 4)
    brightness, contrast, saturation = (
        jax.random.uniform(factor_key, (), minval=max(0.0, 1 - jitter), maxval=1 + jitter) for factor_key in keys[:3]
    )
    hue = jax.random.uniform(keys[3], (), minval=-jitter, maxval=jitter)
    image = jnp.clip(image * brightness, 0, 1)
    with jax.numpy_dtype_promotion("standard"):  # for users who set "strict", which dm_pix does not support
        image = jnp.clip(dm_pix.adjust_contrast(image, contrast), 0, 1)
        image = dm_pix.adjust_saturation(image, saturation)
        return jnp.clip(dm_pix.adjust_hue(image, hue), 0, 1)
