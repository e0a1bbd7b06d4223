"""Handwritten digits that ship with scikit-learn: a small labelled data set that needs no download."""

import dataclasses
from typing import Any

import numpy as np

from kvae.core.errors import InputError, require_extra
from kvae.core.fields import Size
from kvae.data.dataset import ArrayExamples, Codebook, Dataset


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

    if size < 8:
        raise InputError(f"dataset.size is {size}; it must be an integer >= 8, because the digits have 8 x 8 pixels")
    source = _source()
    grey = np.round(source.images * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(digit).resize((size, size), Image.Resampling.BILINEAR)) for digit in grey]
    images = np.repeat(np.stack(large)[..., None], 3, axis=-1)
    return _held_out(source, image=images)


def digit_codes() -> Dataset:
    """Loads the same digits as codes: 8 x 8 pixels, each one of 17 grey levels.

    Use it to try a model of codes without a trained tokeniser. The array is named `codebook`; its codebook
    is a line of 17 codes, whose codewords are the grey levels from 0 to 1.
    """
    source = _source()
    levels = np.linspace(0, 1, 17, dtype=np.float32)[:, None]
    codebooks = {"codebook": Codebook(shape=(8, 8), size=17, grid_shape=(17,), codewords=levels)}
    return dataclasses.replace(_held_out(source, codebook=source.images.astype(np.int32)), codebooks=codebooks)


def _source() -> Any:
    """Returns scikit-learn's digits: `images` float64 [n, 8, 8] from 0 to 16, `target` [n] and `target_names`."""
    with require_extra("som"):
        from sklearn import datasets

    return datasets.load_digits()


def _held_out(source: Any, **arrays: np.ndarray) -> Dataset:
    """Returns arrays [n, ...] and labels as a data set that holds out every fifth digit of each class."""
    labels = source.target.astype(np.int32)
    is_validation = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        is_validation[np.flatnonzero(labels == label)[4::5]] = True
    examples = ArrayExamples({**arrays, "label": labels})
    return Dataset(
        train=ArrayExamples(examples[~is_validation]),
        validation={"validation": ArrayExamples(examples[is_validation])},
        label_names=tuple(str(name) for name in source.target_names),
    )
