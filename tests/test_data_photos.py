import collections
import pathlib
import shutil

import numpy as np
import pytest

from kvae import data
from kvae.core.errors import InputError
from kvae.data.sets import photos, photos_builder
from kvae.data.sets.photos_builder import MAX_PIXEL_ROWS, SCENES, Photos, grid_of_crops

PER_PHOTOGRAPH = {
    "coffee.png": 975,
    "hubble_deep_field.jpg": 986,
    "ihc.png": 841,
    "motorcycle_left.png": 459,
    "motorcycle_right.png": 459,
    "retina.jpg": 961,
    "rocket.jpg": 851,
    "astronaut.png": 441,
    "chelsea.png": 476,
}


@pytest.fixture(scope="module")
def small(data_dir):
    return data.load("photos", size=32, data_dir=data_dir)


def photographs(data_dir, size, split):
    """Returns the photograph of each record, in the order of the records."""
    source = Photos(config=str(size), data_dir=data_dir).as_data_source(split)
    return [record["photograph"].decode() for record in source]


def test_crops_have_documented_shapes_and_counts(small):
    assert small.train.arrays["image"].shape == (5532, 32, 32, 3)
    assert small.validation["validation"].arrays["image"].shape == (917, 32, 32, 3)
    assert small.train.arrays["image"].dtype == np.uint8


def test_splits_share_no_photograph_and_none_dominates(small, data_dir):
    counts = {split: collections.Counter(photographs(data_dir, 32, split)) for split in SCENES}
    assert not counts["train"].keys() & counts["validation"].keys()
    assert counts["train"] | counts["validation"] == PER_PHOTOGRAPH
    assert max(counts["train"].values()) < 0.2 * len(small.train)


def test_stereo_pair_is_one_scene():
    assert ("motorcycle_left.png", "motorcycle_right.png") in SCENES["train"]


def test_splits_share_no_crop(small):
    train = {image.tobytes() for image in small.train.arrays["image"]}
    shared = [image for image in small.validation["validation"].arrays["image"] if image.tobytes() in train]
    assert all(image.std() == 0 for image in shared)  # black crops may be equal


def test_validation_covers_colours_of_training(small):
    # In each channel, nine tenths of the training pixels are in the range of the validation pixels.
    train, validation = small.train.arrays["image"], small.validation["validation"].arrays["image"]
    low, high = np.percentile(train, [5, 95], axis=(0, 1, 2))
    lowest, highest = np.percentile(validation, [0.5, 99.5], axis=(0, 1, 2))
    assert (lowest <= low + 8).all()
    assert (highest >= high - 8).all()


def test_crops_are_on_finest_grid_within_limit():
    corners = grid_of_crops(100, 60, 32, most=40)
    lefts, tops = sorted({left for left, _ in corners}), sorted({top for _, top in corners})
    assert corners == [(left, top) for top in tops for left in lefts]
    assert len(corners) <= 40 < len(range(0, 69, lefts[1] - 1)) * len(range(0, 29, lefts[1] - 1))
    assert max(lefts) + 32 <= 100
    assert max(tops) + 32 <= 60
    assert grid_of_crops(40, 40, 32, most=1000)[1] == (4, 0)


def test_second_call_reads_what_first_prepared(small, data_dir):
    folder = pathlib.Path(data_dir, "photos", "32")
    before = sorted(path.stat().st_mtime_ns for path in folder.rglob("*"))
    again = data.load("photos", size=32, data_dir=data_dir)
    np.testing.assert_array_equal(again.train.arrays["image"], small.train.arrays["image"])
    assert sorted(path.stat().st_mtime_ns for path in folder.rglob("*")) == before


@pytest.mark.parametrize("size", photos.SIZES)
def test_smallest_photograph_is_large_enough(size):
    scale = 2 if size == 32 else 1
    assert grid_of_crops(451 // scale, 300 // scale, size, MAX_PIXEL_ROWS // size)


def test_two_processes_may_prepare_at_once_in_silence(tmp_path, monkeypatch, capfd):
    """Another process prepares the same crops between the first one's preparation and its rename."""
    monkeypatch.setattr(photos_builder, "MAX_PIXEL_ROWS", 4 * 256)
    move, loaded = photos._move, []

    def move_second(folder, target):
        monkeypatch.setattr(photos, "_move", move)
        loaded.append(data.load("photos", size=256, data_dir=str(tmp_path)))
        move(folder, target)

    monkeypatch.setattr(photos, "_move", move_second)
    loaded.append(data.load("photos", size=256, data_dir=str(tmp_path)))
    assert capfd.readouterr() == ("", "")
    one, other = loaded
    assert one.train.arrays["image"].shape == (22, 256, 256, 3)
    np.testing.assert_array_equal(one.train.arrays["image"], other.train.arrays["image"])
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert [path.name for path in (tmp_path / "photos" / "256").iterdir()] == ["1.0.0"]


def test_unknown_size_names_known_sizes():
    with pytest.raises(InputError, match=r"dataset\.size is 48; it must be one of 32, 64, 128, 256"):
        data.load("photos", size=48)


def test_unwritable_data_dir_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as caught:
        data.load("photos", data_dir=str(tmp_path / "file" / "below"))
    assert str(caught.value) == (
        f"dataset.data_dir: {tmp_path}/file/below cannot be written (Not a directory); choose another folder"
    )


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "zeros"])
def test_corrupted_records_are_named(small, data_dir, tmp_path, damage):
    """ArrayRecord's own checksums notice them, so kvae keeps none."""
    shutil.copytree(pathlib.Path(data_dir, "photos", "32"), tmp_path / "photos" / "32")
    records = next(tmp_path.rglob("*validation.array_record*"))
    for copy in tmp_path.rglob("*.npz"):
        copy.write_bytes(copy.read_bytes()[:100_000])  # unusable, so the records are read
    content = bytearray(records.read_bytes())
    middle = len(content) // 2
    if damage == "truncated":
        del content[middle:]
    elif damage == "flipped bit":
        content[middle] ^= 1
    else:
        content[middle : middle + 4096] = bytes(4096)
    records.write_bytes(content)
    with pytest.raises(InputError, match=r"photos/32/1\.0\.0 is .* \(.*\); delete it to have it prepared again"):
        data.load("photos", size=32, data_dir=str(tmp_path))
