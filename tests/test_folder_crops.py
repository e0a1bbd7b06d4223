"""Crops of a folder's photographs: how they are cut, kept, split and refused."""

import errno
import os
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from image_files import save
from kvae import data
from kvae.core.errors import InputError
from kvae.data.sets import folder_crops


def photograph(path, size=(96, 64), seed=0):
    """Saves noise with coarse structure, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


def crops(root, **fields):
    """Loads four crops of 32 pixels of each image."""
    return data.load("folder", path=str(root), size=32, crops_per_image=4, data_dir=f"{root}.crops", **fields)


@pytest.fixture
def album(tmp_path):
    root = tmp_path / "album"
    root.mkdir()
    for i in range(6):
        photograph(root / f"{i}.png", seed=i)
    return root


def all_crops(dataset):
    sets = (dataset.train, dataset.validation["validation"])
    return np.concatenate([[examples[i]["image"] for i in range(len(examples))] for examples in sets])


def test_crops_are_cut_once_and_again_after_a_change(album, monkeypatch):
    first = all_crops(crops(album))
    assert first.shape == (24, 32, 32, 3)
    with monkeypatch.context() as patch:
        patch.setattr(folder_crops, "cut_crops", None)  # would raise
        np.testing.assert_array_equal(all_crops(crops(album)), first)
    photograph(album / "6.png", seed=6)
    assert {crop.tobytes() for crop in first} < {crop.tobytes() for crop in all_crops(crops(album))}


def test_crops_on_disk_equal_those_in_memory(album, monkeypatch):
    in_memory = crops(album)
    monkeypatch.setattr("kvae.data.dataset.MEMORY_BYTES", 1)
    on_disk = crops(album)
    assert isinstance(on_disk.train, folder_crops.CropExamples)
    np.testing.assert_array_equal(all_crops(on_disk), all_crops(in_memory))
    with pytest.raises(IndexError):
        on_disk.train[len(on_disk.train)]


def test_crops_of_a_photograph_share_a_set_and_its_label(tmp_path):
    for i in range(10):
        save(tmp_path / f"album {i % 2}" / f"{i}.png", (i * 20,) * 3, size=(40, 50))
    dataset = crops(tmp_path, validation_fraction=0.3)
    train, validation = (dict(zip(examples.arrays["image"][:, 0, 0, 0], examples.arrays["label"], strict=True))
                         for examples in (dataset.train, dataset.validation["validation"]))  # fmt: skip
    assert not train.keys() & validation.keys()
    assert train | validation == {i * 20: i % 2 for i in range(10)}


def test_smallest_image_is_its_own_crop(album):
    photograph(album / "small.png", size=(32, 32), seed=9)
    whole = np.asarray(Image.open(album / "small.png"))
    assert (all_crops(crops(album)) == whole).all(axis=(1, 2, 3)).sum() == 4


@given(width=st.integers(32, 5_000), height=st.integers(32, 5_000), seed=st.integers(0, 2**64 - 1))
def test_crop_corners_are_inside_the_image(width, height, seed):
    left, top, side = folder_crops.crop_corners(width, height, 32, 50, seed).T
    assert min(left.min(), top.min()) >= 0
    assert (left + side).max() <= width
    assert (top + side).max() <= height
    assert side.min() >= 32


def test_crops_at_every_scale_average_the_pixels():
    ramp = np.broadcast_to(np.arange(512) / 2, (512, 512)).astype(np.uint8)
    image = Image.fromarray(np.stack([ramp] * 3, axis=-1))
    corners = folder_crops.crop_corners(512, 512, 32, 64, seed=1)
    for crop, (left, _, side) in zip(folder_crops.cut_crops(image, 32, 64, seed=1), corners, strict=True):
        expected = (left + (np.arange(32) + 0.5) * side / 32 - 0.5) / 2
        np.testing.assert_allclose(crop[16, 1:-1, 0], expected[1:-1], atol=1.5)


def test_a_picture_in_two_sizes_is_used_once(album):
    with Image.open(album / "3.png") as image:
        image.resize((192, 128), Image.Resampling.BICUBIC).save(album / "wallpaper.jpg", quality=95)
    assert len(all_crops(crops(album))) == 24


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 80}, "is not a readable image (it has 96 x 64 pixels, fewer than dataset.size = 80)"),
        ({"crops_per_image": -1}, "dataset.crops_per_image is -1; it must be an integer >= 0"),
        ({"crops_per_image": 10**9}, "lower it, or choose another dataset.data_dir"),
    ],
)
def test_impossible_crops_are_one_line(album, fields, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        data.load(
            "folder", **{"path": str(album), "size": 32, "data_dir": f"{album}.crops", "crops_per_image": 4, **fields}
        )
    assert "\n" not in str(error.value)


def test_small_images_are_skipped_if_asked(album):
    photograph(album / "small.png", size=(20, 60), seed=9)
    assert len(all_crops(crops(album, skip_unreadable=True))) == 24


def test_full_disk_and_damaged_crops_are_one_line(album, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(InputError, match="No space left on device; existing files are intact"):
            crops(album)
    crops(album)
    (file,) = (album.parent / "album.crops" / "folder_crops").glob("*.npy")
    os.truncate(file, 1_000)
    with pytest.raises(InputError, match="delete it to have it prepared again"):
        crops(album)


def test_broken_links_are_unreadable_images(album):
    (album / "link.png").symlink_to(album / "nowhere.png")
    with pytest.raises(InputError, match=r"link\.png is not a readable image"):
        crops(album)
    assert len(all_crops(crops(album, skip_unreadable=True))) == 24


def test_colours_of_equal_brightness_are_different_pictures(album):
    save(album / "red.png", (200, 0, 0), size=(40, 40))
    save(album / "green.png", (0, 102, 0), size=(40, 40))
    assert len(all_crops(crops(album))) == 32
