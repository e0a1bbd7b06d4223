"""Handwritten digits that ship inside scikit-learn: a small set with labels that needs no network."""

import numpy as np

from kvae.core.errors import InputError
from kvae.core.fields import Size
from kvae.data.dataset import ArrayExamples, Dataset


def digits(size: Size = 32) -> Dataset:
    """The 1,797 digits of scikit-learn, 8 x 8 pixels of 0..16, as uint8 size x size x 3 of 0..255 with labels.

    Enlarged with bilinear interpolation, the three channels equal. Of each class every fifth digit validates: 355 in
    all, 1,442 train.

    Args:
      size: the images' side in pixels.

    Raises:
      InputError: a size below 8.
    """
    from PIL import Image
    from sklearn import datasets

    if size < 8:
        raise InputError(f"dataset.size is {size}; the digits have 8 x 8 pixels, and are only enlarged")
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
