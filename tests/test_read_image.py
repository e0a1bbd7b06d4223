"""`read_image` turns a file of any mode, depth, frame count and orientation into RGB of one size."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from image_files import GREY, NOISE, RED, WHITE, save
from kvae.data.images import read_image


def pixel(path):
    """Returns the colour at the centre of an image."""
    image = read_image(path, 8, crop=True)
    assert image.shape == (8, 8, 3)
    assert image.dtype == np.uint8
    return tuple(image[4, 4].tolist())


@pytest.mark.parametrize(
    ("mode", "suffix", "color"),
    [
        ("RGB", "png", RED),
        ("P", "png", RED),
        ("P", "gif", RED),
        ("CMYK", "tif", RED),
        ("CMYK", "jpg", RED),
        ("YCbCr", "jpg", RED),
        ("LAB", "tif", GREY),
        ("L", "png", GREY),
        ("L", "jpg", GREY),
        ("LA", "png", GREY),
        ("1", "png", WHITE),
        ("RGB", "webp", RED),
        ("RGB", "ppm", RED),
        ("RGB", "tga", RED),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, suffix, color):
    path = save(tmp_path / f"a.{suffix}", color, mode=mode)
    tolerance = 4 if mode == "LAB" or suffix in ("jpg", "webp") else 0
    np.testing.assert_allclose(pixel(path), color, atol=tolerance)


@pytest.mark.parametrize(
    ("values", "suffix", "level"),
    [
        (np.full((8, 8), 65535, np.uint16), "png", 255),
        (np.full((8, 8), 128 * 257, np.uint16), "png", 128),
        (np.full((8, 8), 128 * 257, np.uint16), "tif", 128),
        (np.full((8, 8), 128 * 257, np.int32), "tif", 128),
        (np.full((8, 8), 0.2, np.float32), "tif", 51),
        (np.full((8, 8), 51, np.float32), "tif", 51),
        (np.full((8, 8), np.nan, np.float32), "tif", 0),
    ],
)
def test_deep_grey_keeps_its_range(tmp_path, values, suffix, level):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path)
    assert pixel(path) == (level,) * 3


def test_transparency_is_put_on_white(tmp_path):
    Image.new("RGBA", (8, 8), (*RED, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "half.png")
    Image.new("P", (8, 8), 0).save(tmp_path / "palette.png", transparency=0)
    assert pixel(tmp_path / "clear.png") == WHITE
    assert pixel(tmp_path / "half.png") == (127, 127, 127)
    assert pixel(tmp_path / "palette.png") == WHITE


def test_first_frame_of_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, GREY)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(tmp_path / "a.gif") == RED


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.fromarray(NOISE).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 40, crop=True), np.rot90(NOISE[:, 10:50], -1))


def test_crop_keeps_centre_and_resize_keeps_all(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 40, crop=True), NOISE[:, 10:50])
    resized = Image.fromarray(NOISE).resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 20, crop=False), resized)


def test_shrinking_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_image(tmp_path / "a.png", 8, crop=True)[:, 1:-1], 127.5, atol=4)


def test_jpeg_decoded_at_fraction_looks_same(tmp_path):
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    large = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 90), axis=-1).astype(np.uint8)
    Image.fromarray(large).save(tmp_path / "a.jpg", quality=95)
    expected = Image.fromarray(large).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg", 32, crop=True), np.asarray(expected, float), atol=4)


def test_small_images_are_enlarged(tmp_path):
    assert read_image(save(tmp_path / "a.png", size=(3, 5)), 32, crop=True).shape == (32, 32, 3)


def swapped_profile():
    """Returns an ICC profile whose red is sRGB's blue, and the reverse."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = {bytes(data[i : i + 4]): i for i in range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12)}
    one, two = (slice(entries[name] + 4, entries[name] + 12) for name in (b"rXYZ", b"bXYZ"))
    data[one], data[two] = data[two], data[one]
    return bytes(data).replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))


def test_colors_of_embedded_profile_become_srgb(tmp_path):
    profile, srgb = swapped_profile(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, icc, expected in [
        ("swapped", profile, [30, 20, 250]),
        ("srgb", srgb, [250, 20, 30]),
        ("corrupted", profile[:200], [250, 20, 30]),
        ("junk", b"junk", [250, 20, 30]),
    ]:
        Image.new("RGBA", (40, 40), (250, 20, 30, 255)).save(tmp_path / f"{name}.png", icc_profile=icc)
        assert read_image(tmp_path / f"{name}.png", 32, crop=True)[5, 5].tolist() == expected
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "cmyk.tiff", icc_profile=profile)  # not of CMYK
    assert read_image(tmp_path / "cmyk.tiff", 32, crop=True)[5, 5].tolist() == [255, 0, 0]
