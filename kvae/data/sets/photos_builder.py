"""The tfds builder of the data set `photos`. This module imports tfds, so `photos` imports it only when called."""

import importlib.resources
import io
import itertools
from collections.abc import Iterator

import tensorflow_datasets as tfds
from PIL import Image

from kvae.core.errors import require_extra
from kvae.data.images import open_image
from kvae.data.sets.photos import SIZES

MAX_PIXEL_ROWS = 32_000
"""A training scene has at most MAX_PIXEL_ROWS / size crops and a validation scene half as many (1,000 and 500 at 32
px), so that large photographs do not dominate."""

SCENES = {
    "train": (
        ("coffee.png",),
        ("hubble_deep_field.jpg",),
        ("ihc.png",),
        ("motorcycle_left.png", "motorcycle_right.png"),  # a stereo pair shows one scene twice
        ("retina.jpg",),
        ("rocket.jpg",),
    ),
    # Of all pairs, these two photographs resemble the others most: they use 454 of 512 patches that k-means learns from
    # the others, and their error is 1.6 times the training error.
    "validation": (("astronaut.png",), ("chelsea.png",)),
}
"""The photographs of each split, grouped by scene. No scene is in both splits."""


class Photos(tfds.core.GeneratorBasedBuilder):
    """Builder of crops, one config per size; `photograph` is the file name of the photograph that `image` is from."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=str(size)) for size in SIZES]  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        size = int(self.builder_config.name)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Crops of the colour photographs that ship inside scikit-image.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "photograph": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in SCENES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        size = int(self.builder_config.name)
        for key, (photograph, crop) in enumerate(_crops(split, size)):
            png = io.BytesIO()  # encoded here, because tfds needs TensorFlow for it
            crop.save(png, "PNG", compress_level=1)
            yield key, {"image": png.getvalue(), "photograph": photograph}


def _crops(split: str, size: int) -> Iterator[tuple[str, Image.Image]]:
    """Yields the file name of the photograph and the crop, for each crop of a split."""
    with require_extra("train"):
        folder = importlib.resources.files("skimage").joinpath("data")
    for scene in SCENES[split]:
        most = MAX_PIXEL_ROWS // size // (len(scene) if split == "train" else 2)
        for photograph in scene:
            with open_image(folder.joinpath(photograph).read_bytes(), photograph, "install scikit-image again") as file:
                image = file.convert("RGB")
            if size == 32:
                image = image.reduce(2)
            for left, top in grid_of_crops(image.width, image.height, size, most):
                yield photograph, image.crop((left, top, left + size, top + size))


def grid_of_crops(width: int, height: int, size: int, most: int) -> list[tuple[int, int]]:
    """Returns the (left, top) corners of at most `most` crops on a regular grid that covers an image.

    The stride is the smallest that gives at most `most` crops, but not less than an eighth of a crop.

    Example:
      >>> grid_of_crops(width=64, height=32, size=32, most=3)
      [(0, 0), (11, 0), (22, 0)]
    """
    for stride in itertools.count(size // 8):
        columns, rows = range(0, width - size + 1, stride), range(0, height - size + 1, stride)
        if len(columns) * len(rows) <= most:
            return [(left, top) for top in rows for left in columns]
