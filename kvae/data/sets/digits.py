"""Handwritten digits that are installed with scikit-learn: a small labelled data set that needs no network."""

import numpy as np

from kvae.core.errors import InputError, require_extra
from kvae.core.fields import Size
from kvae.data.dataset import ArrayExamples, Dataset


def digits(size: Size = 32) -> Dataset:
    """The 1,797 labelled digits of scikit-learn, from 8 x 8 pixels of 0..16 to uint8 size x size x 3 of 0..255.

    They are enlarged with bilinear interpolation; the three channels are equal. Every fifth digit of each class is for
    validation: 355 in all. 1,442 are for training.

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
        raise InputError(f"dataset.size is {size}; it must be 8 or larger: the digits have 8 x 8 pixels")
    source = datasets.load_digits()
    grey = np.round(source.images * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(digit).resize((size, size), Image.Resampling.BILINEAR)) for digit in grey]
    images = np.repeat(np.stack(large)[..., None], 3, axis=-1)
    labels = source.target.astype(np.int32)

    validates = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        validates[np.flatnonzero(labels == label)[4::5]] = True
    return Dataset(
        train=ArrayExamples({"image": images[~validates], "label": labels[~validates]}),
        validation={"validation": ArrayExamples({"image": images[validates], "label": labels[validates]})},
        label_names=tuple(str(name) for name in source.target_names),
    )
