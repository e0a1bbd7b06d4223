"""Counts and mean patches of codes, against a plain loop and by hand."""

import numpy as np

from kvae.models.codebook_views import UNUSED_GREY, CodebookView
from kvae.topology import Plane

RANDOM = np.random.default_rng(0)


def test_mean_patch_averages_all_places_of_a_code():
    images = RANDOM.integers(0, 256, (5, 8, 12, 3), dtype=np.uint8)
    codes = RANDOM.integers(0, 5, (5, 4, 4)).astype(np.int32)  # a code is 2 by 3 pixels; the last code is never used
    padded = np.pad(images, [(0, 0), (2, 2), (3, 3), (0, 0)], mode="edge").astype(float)
    expected = np.full((6, 6, 9, 3), UNUSED_GREY)
    for code in range(5):
        places = np.argwhere(codes == code)
        patches = [padded[i, 2 * row : 2 * row + 6, 3 * column : 3 * column + 9] for i, row, column in places]
        expected[code] = np.mean(patches, axis=0).round()
    view = CodebookView(codes, 6, Plane((2, 3)), is_map=True)
    np.testing.assert_array_equal(view.mean_patches(images), expected.reshape(2, 3, 6, 9, 3))
    np.testing.assert_array_equal(view.counts, [[np.sum(codes == 3 * i + j) for j in range(3)] for i in range(2)])


def test_mean_patch_of_whole_images_without_a_grid():
    images = np.array([10, 20, 90], np.uint8)[:, None, None, None] * np.ones((4, 4, 3), np.uint8)
    view = CodebookView(np.array([1, 1, 0])[:, None, None], 3, None, is_map=False, patch_width=1)
    assert view.mean_patches(images)[:, 0, 0, 0].tolist() == [90, 15, UNUSED_GREY]
    assert view.u_matrix is None
