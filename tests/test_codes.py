"""Images and codes that a user passes to a run, and codes moved along the grid."""

import numpy as np
import pytest
from PIL import Image

import kvae
from kvae.core.errors import InputError
from kvae.data.images import read_image
from kvae.grids import GRIDS

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def run(trained_run):
    return kvae.load(str(trained_run()))


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "b.png", tmp_path / "a.jpg"]
    for path in paths:
        Image.fromarray(NOISE).save(path)
    Image.fromarray(NOISE[..., 0]).save(tmp_path / "c.tiff")
    return paths


def test_read_images_resizes_as_the_data_set_does(run, files, tmp_path):
    """With the size and crop of the run: folders in the order of paths, files in their own, Pillow images."""
    size, expected = run.config["dataset"]["size"], {path.name: read_image(path, 32, crop=True) for path in files}
    assert size == 32
    images = run.read_images(tmp_path)
    assert images.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(images[:2], [expected["a.jpg"], expected["b.png"]])
    np.testing.assert_array_equal(run.read_images(files), [expected["b.png"], expected["a.jpg"]])
    np.testing.assert_array_equal(run.read_images(str(files[0])), [expected["b.png"]])
    np.testing.assert_array_equal(run.read_images(Image.fromarray(NOISE)), [expected["b.png"]])
    squeezed = run.read_images(files[0], size=16, crop=False)
    np.testing.assert_array_equal(squeezed[0], read_image(files[0], 16, crop=False))
    assert run.encode(images)["codebook"].shape == (3, 8, 8)


def test_read_images_rejects_other_sources(run, files, tmp_path):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.png"
    broken.write_bytes(files[0].read_bytes()[:500])
    with Image.open(broken) as lazy:
        for source, message in [
            (tmp_path / "empty", "has no images"),
            (tmp_path / "none", "does not exist; name a folder of images"),
            ([], "the sequence is empty; give a folder, files, or Pillow images"),
            ([NOISE], "an element is a ndarray; give a folder, files, or Pillow images"),
            ([files[0], broken], r"broken\.png is not a readable image .*; replace or remove it$"),
            (lazy, "a Pillow image is not readable"),
        ]:
            with pytest.raises(InputError, match=message):
                run.read_images(source)


@pytest.mark.parametrize(
    ("images", "hint"),
    [
        (np.zeros((32, 32, 3), np.uint8), "; pass images[None]"),
        (Image.fromarray(NOISE), "; pass images[None]"),
        (np.zeros((2, 3, 32, 32), np.uint8), "; move the channels to the end with np.moveaxis(images, 1, -1)"),
        (np.zeros((2, 32, 32, 3)), "(255 * images).round().astype(np.uint8)"),
        (["a.png", "b.png"], "run.read_images reads files and Pillow images"),
        ([NOISE, NOISE[1:]], "which NumPy cannot convert to an array"),
    ],
)
def test_encode_suggests_a_conversion(run, images, hint):
    with pytest.raises(InputError) as error:
        run.encode(images)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_codes_near_are_sorted_by_distance_on_the_grid(run):
    """The map is [4, 8]: code 9 is at (1, 1)."""
    near = run.codes_near(9)
    assert near.dtype == np.int32
    assert near[0] == 9
    assert {*near[1:5]} == {1, 8, 10, 17}
    assert {*near[5:]} == {0, 2, 16, 18}
    assert {*run.codes_near(0)} == {0, 1, 8, 9}
    assert len(run.codes_near(9, radius=100)) == 32
    with pytest.raises(InputError, match="code is 32; codes of 'codebook' must be from 0 to 31"):
        run.codes_near(32)
    with pytest.raises(InputError, match="codebook is 'cdebook'; did you mean 'codebook'"):
        run.codes_near(0, codebook="cdebook")


def test_interpolation_follows_the_grid_from_end_to_end(run):
    ends = [run.encode(NOISE[None, :32, i : i + 32]) for i in (0, 20)]
    way = run.interpolate(*ends, steps=5)
    assert len(way) == 5
    np.testing.assert_array_equal(way[0]["codebook"], ends[0]["codebook"])
    np.testing.assert_array_equal(way[-1]["codebook"], ends[1]["codebook"])
    at = np.array([np.unravel_index(codes["codebook"], (4, 8)) for codes in way])
    longest = np.abs(at[-1] - at[0])
    assert np.all(np.abs(np.diff(at, axis=0)) <= np.ceil(longest / 4))
    assert run.decode(way[2]).shape == (1, 32, 32, 3)
    with pytest.raises(InputError, match="steps is 1; it must be an integer >= 2"):
        run.interpolate(*ends, steps=1)
    with pytest.raises(InputError, match=r"have different shapes: \[1, 8, 8\] and \[1, 4, 4\]"):
        run.interpolate(ends[0], {"codebook": np.zeros((1, 4, 4), int)}, steps=3)


@pytest.mark.parametrize("name", GRIDS)
def test_between_is_on_a_shortest_path(name):
    """d(a, m) + d(m, b) = d(a, b) up to rounding to a node, and d(a, m) is the share of it."""
    grid = GRIDS[name]((4, 6))
    a, b = np.random.default_rng(1).integers(0, 24, (2, 200))
    for share in (0.0, 0.25, 0.5, 1.0):
        between = grid.between(a, b, share)
        total, before, after = (np.asarray(grid.distance(*pair)) for pair in ((a, b), (a, between), (between, b)))
        assert np.max(np.abs(before - share * total)) <= 1.5
        assert np.max(before + after - total) <= 2.01
        if share in (0.0, 1.0):
            np.testing.assert_array_equal(between, b if share else a)


def test_shortest_path_on_torus_crosses_the_border():
    assert int(GRIDS["torus"]((1, 8)).between(7, 1, 0.5)) == 0
    assert int(GRIDS["plane"]((1, 8)).between(7, 1, 0.5)) == 4
