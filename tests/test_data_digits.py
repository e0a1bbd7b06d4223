import numpy as np
import pytest
from sklearn.datasets import load_digits

from kvae import data


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def parts(dataset):
    return dataset.train.arrays, dataset.validation["validation"].arrays


def test_digits_have_documented_shapes_and_types(digits):
    train, validation = parts(digits)
    assert train["image"].shape == (1442, 32, 32, 3)
    assert validation["image"].shape == (355, 32, 32, 3)
    for part in (train, validation):
        assert part["image"].dtype == np.uint8
        assert part["label"].dtype == np.int32
        np.testing.assert_array_equal(part["image"][..., 0], part["image"][..., 2])
    assert digits.label_names == tuple("0123456789")


def test_digits_use_full_pixel_range(digits):
    images = np.concatenate([part["image"] for part in parts(digits)])
    assert images.min() == 0
    assert images.max() == 255


def test_fifth_of_each_class_validates(digits):
    train, validation = (np.bincount(part["label"]) for part in parts(digits))
    np.testing.assert_array_equal(train + validation, np.bincount(load_digits().target))
    np.testing.assert_array_equal(validation, (train + validation) // 5)


def test_digits_keep_their_labels(digits):
    # Reduced to 8 x 8, each digit is nearest to a digit of scikit-learn with the same label.
    source = load_digits()
    train, _ = parts(digits)
    small = train["image"][:200, :, :, 0].reshape(200, 8, 4, 8, 4).mean((2, 4)) * (16 / 255)
    distances = np.sum((small[:, None] - source.images[None]) ** 2, axis=(2, 3))
    np.testing.assert_array_equal(source.target[distances.argmin(axis=1)], train["label"][:200])
