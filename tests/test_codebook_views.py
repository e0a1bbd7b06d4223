"""Counts, mean patches and pictures of codes, against a plain loop and by hand."""

import numpy as np

from kvae.models.autoencoders import inspection
from kvae.models.codebook_views import UNUSED_GREY, CodebookView
from kvae.plots import codebooks
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


def test_large_map_has_a_picture_of_its_most_used_part(monkeypatch):
    """On 100 x 70 codes, blocks start at multiples of 32 where they fit; code (98, 40) is used most."""
    drawn = {}
    monkeypatch.setattr(
        codebooks, "draw_codebook_map", lambda path, *args, **kwargs: drawn.update({path: (args, kwargs)})
    )
    codes = np.array([98 * 70 + 40] * 3 + [5] * 2)[:, None, None]
    decoded = np.arange(7_000 * 12, dtype=np.int64).reshape(7_000, 2, 2, 3).astype(np.uint8)
    view = CodebookView(codes, 7_000, Plane((100, 70)), is_map=True, decode_all=lambda: decoded)
    pictures = inspection._codebook_pictures("codebook", view, np.zeros((5, 4, 4, 3), np.uint8), view.counts, step=4)
    assert list(pictures)[:2] == ["codebook_map", "codebook_map_part"]
    for name in ("codebook_map", "codebook_map_part"):
        pictures[name](name)
    (part, title, counts, *_), options = drawn["codebook_map_part"]
    np.testing.assert_array_equal(part, drawn["codebook_map"][0][0][68:100, 32:64])
    assert title == "The part of the map with the most uses: rows 68 to 99, columns 32 to 63 (step 4)"
    assert counts[30, 8] == counts.sum() == 3 and options["origin"] == (68, 32)


def test_small_map_and_grids_of_three_axes_are_shown_whole():
    assert inspection._most_used_part(np.ones((96, 96))) is None
    assert inspection._most_used_part(np.ones((8, 8, 128))) is None
    assert inspection._most_used_part(np.ones((1, 500))) == (slice(0, 1), slice(0, 32))
