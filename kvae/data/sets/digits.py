"""Handwritten digits that ship with scikit-learn: a small labelled data set that needs no download."""

import numpy as np

from kvae.core.errors import InputError, require_extra
from kvae.core.fields import Size
from kvae.data.dataset import ArrayExamples, Dataset


def digits(size: Size = 32) -> Dataset:
    """Loads the 1,797 labelled digits of scikit-learn as RGB images.

    The grey images of 8 x 8 pixels are scaled from 0..16 to 0..255 and enlarged with bilinear interpolation; the three
    channels are equal. Every fifth digit of each class is held out: 355 digits for validation, 1,442 for training.

    Args:
      size: side of the images in pixels, at least 8.

    Raises:
      InputError: the size is below 8.
    """
    with require_extra("train"):
        from PIL import Image
    with require_extra("som"):
        from sklearn import datasets

    if size < 8:
        raise InputError(f"dataset.size is {size}; it must be an integer >= 8, because the digits have 8 x 8 pixels")
    source = datasets.load_digits()
    grey = np.round(source.images * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(digit).resize((size, size), Image.Resampling.BILINEAR)) for digit in grey]
    images = np.repeat(np.stack(large)[..., None], 3, axis=-1)
    labels = source.target.astype(np.int32)

    is_validation = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        is_validation[np.flatnonzero(labels == label)[4::5]] = True
    return Dataset(
        train=ArrayExamples({"image": images[~is_validation], "label": labels[~is_validation]}),
        validation={"validation": ArrayExamples({"image": images[is_validation], "label": labels[is_validation]})},
        label_names=tuple(str(name) for name in source.target_names),
    )
