"""What codes stand for in images, against a plain loop and by hand."""

import numpy as np

from kvae.models.coding import NOTHING, CodebookView
from kvae.topology import Plane

RANDOM = np.random.default_rng(0)


def test_the_mean_patch_of_a_code_is_the_mean_over_all_its_places():
    images = RANDOM.integers(0, 256, (5, 8, 12, 3), dtype=np.uint8)
    codes = RANDOM.integers(0, 5, (5, 4, 4)).astype(np.int32)  # squares of 2 by 3 pixels; the last code is never used
    padded = np.pad(images, [(0, 0), (2, 2), (3, 3), (0, 0)], mode="edge").astype(float)
    expected = np.full((6, 6, 9, 3), NOTHING)
    for code in range(5):
        places = np.argwhere(codes == code)
        patches = [padded[i, 2 * row : 2 * row + 6, 3 * column : 3 * column + 9] for i, row, column in places]
        expected[code] = np.mean(patches, axis=0).round()
    coding = CodebookView(codes, 6, Plane((2, 3)), is_map=True)
    np.testing.assert_array_equal(coding.mean_patches(images), expected.reshape(2, 3, 6, 9, 3))
    np.testing.assert_array_equal(coding.counts, [[np.sum(codes == 3 * i + j) for j in range(3)] for i in range(2)])


def test_a_code_of_a_whole_image_stands_for_the_mean_of_its_images():
    images = np.array([10, 20, 90], np.uint8)[:, None, None, None] * np.ones((4, 4, 3), np.uint8)
    coding = CodebookView(np.array([1, 1, 0])[:, None, None], 3, None, is_map=False, context=1)
    assert coding.mean_patches(images)[:, 0, 0, 0].tolist() == [90, 15, NOTHING]
    assert coding.u_matrix is None
