"""The default data set: crops of the colour photographs that ship inside scikit-image. It needs no network."""

import contextlib
import importlib.resources
import io
import itertools
import os
import pathlib
import tempfile
from collections.abc import Iterator

import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from kvae.core.errors import InputError
from kvae.data.dataset import ArrayExamples, Dataset
from kvae.data.images import opened_image
from kvae.data.manifest import write_manifest
from kvae.data.records import data_folder, decoded_once, is_prepared, opened_builder, wrap_prepare_errors

SIZES = (32, 64, 128, 256)
"""Edges of the square crops, in pixels."""

MOST_PIXELS_HIGH = 32_000
"""No scene gives train more than MOST_PIXELS_HIGH / size crops, nor validation more than half of that: 1,000 and 500 at
32 px. So a large photograph weighs about as much as a small one."""

SCENES = {
    "train": (
        ("coffee.png",),
        ("hubble_deep_field.jpg",),
        ("ihc.png",),
        ("motorcycle_left.png", "motorcycle_right.png"),  # a stereo pair: one scene, seen twice
        ("retina.jpg",),
        ("rocket.jpg",),
    ),
    # Chosen among the pairs for being most like the rest: of 512 patches learned by k-means from the other photographs
    # these two use 454, and their error is 1.6 times that of train.
    "validation": (("astronaut.png",), ("chelsea.png",)),
}
"""The photographs of each split, scene by scene: whole scenes are held out."""


def photos(size: int = 32, data_dir: str = "") -> Dataset:
    """Crops of colour photographs, size x size x 3, held in memory.

    The first call prepares them with tfds, which takes seconds. At 32 px: 5,532 crops to train, 917 to validate.

    Args:
      size: one of `SIZES`. At 32 the photographs are first halved, so that a crop shows something.
      data_dir: tfds's folder; empty for its default.

    Raises:
      InputError: there is no such size, the folder cannot be written, or what is in it is damaged.
    """
    if size not in SIZES:
        raise InputError(f"dataset.size is {size}; the photographs are there at {', '.join(map(str, SIZES))} pixels")
    root = data_folder(data_dir)
    with _quiet():
        builder = opened_builder(root / "photos" / str(size), lambda: Photos(config=str(size), data_dir=root))
        if not is_prepared(builder):
            _prepare(builder)
            builder = Photos(config=str(size), data_dir=root)
        return Dataset(train=_in_memory(builder, "train"), validation={"validation": _in_memory(builder, "validation")})


class Photos(tfds.core.GeneratorBasedBuilder):
    """tfds's recipe, one config per size: `{"image": uint8 [size, size, 3], "photograph": the name of its file}`."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=str(size)) for size in SIZES]  # noqa: RUF012

    def _info(self):
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

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SCENES}

    def _generate_examples(self, split):
        size = int(self.builder_config.name)
        for key, (photograph, crop) in enumerate(_crops(split, size)):
            png = io.BytesIO()  # encoded here, since tfds would need TensorFlow for it
            crop.save(png, "PNG", compress_level=1)
            yield key, {"image": png.getvalue(), "photograph": photograph}


def _crops(split: str, size: int) -> Iterator[tuple[str, Image.Image]]:
    for scene in SCENES[split]:
        most = MOST_PIXELS_HIGH // size // (len(scene) if split == "train" else 2)
        for photograph in scene:
            source = importlib.resources.files("skimage").joinpath("data", photograph).read_bytes()
            with opened_image(source, photograph, "install scikit-image again") as file:
                image = file.convert("RGB")
            if size == 32:
                image = image.reduce(2)
            for left, top in grid_of_crops(image.width, image.height, size, most):
                yield photograph, image.crop((left, top, left + size, top + size))


def grid_of_crops(width: int, height: int, size: int, most: int) -> list[tuple[int, int]]:
    """The (left, top) corners of at most `most` crops that cover a picture on a regular grid.

    The stride is the smallest that keeps to `most`, but not below an eighth of a crop.
    """
    for stride in itertools.count(size // 8):
        columns, rows = range(0, width - size + 1, stride), range(0, height - size + 1, stride)
        if len(columns) * len(rows) <= most:
            return [(left, top) for top in rows for left in columns]


def _prepare(builder: Photos) -> None:
    """Makes the records in a folder of our own and moves them in place whole: several processes may do so at once."""
    target = pathlib.Path(builder.data_path)
    root = pathlib.Path(builder.data_dir_root)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="photos.incomplete.", dir=root) as private:
            made = Photos(config=builder.builder_config.name, data_dir=private)
            with wrap_prepare_errors(target):
                made.download_and_prepare(file_format="array_record")
                write_manifest(made.data_path)
            _move(pathlib.Path(made.data_path), target)
    except OSError as error:
        raise InputError(
            f"dataset.data_dir: {root} cannot be written ({error.strerror}); choose a folder that can"
        ) from error


def _move(folder: pathlib.Path, target: pathlib.Path) -> None:
    try:
        os.rename(folder, target)
    except OSError:
        if not target.exists():  # else another process was first, with the same crops
            raise


def _in_memory(builder: Photos, split: str) -> ArrayExamples:
    return ArrayExamples(decoded_once(builder, split, fields=("image",)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what tfds prints, logs and draws: for a few seconds' work that is noise."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
