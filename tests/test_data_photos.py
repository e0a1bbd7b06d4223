import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from kvae import data
from kvae.core.errors import InputError
from kvae.data.sets.photos import MOST_PIXELS_HIGH, SCENES, SIZES, Photos, grid_of_crops

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
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def small(data_dir):
    return data.load("photos", size=32, data_dir=data_dir)


def photographs(data_dir, size, split):
    """The photograph of each record, in the order of the records."""
    source = Photos(config=str(size), data_dir=data_dir).as_data_source(split)
    return [record["photograph"].decode() for record in source]


def test_shapes_and_counts(small):
    assert small.train.arrays["image"].shape == (5532, 32, 32, 3)
    assert small.validation["validation"].arrays["image"].shape == (917, 32, 32, 3)
    assert small.train.arrays["image"].dtype == np.uint8


def test_no_photograph_is_on_both_sides_and_none_dominates(small, data_dir):
    counts = {
        split: {name: of_split.count(name) for name in set(of_split)}
        for split in SCENES
        for of_split in [photographs(data_dir, 32, split)]
    }
    assert not counts["train"].keys() & counts["validation"].keys()
    assert counts["train"] | counts["validation"] == PER_PHOTOGRAPH
    assert max(counts["train"].values()) < 0.2 * len(small.train)


def test_the_stereo_pair_is_one_scene():
    assert ("motorcycle_left.png", "motorcycle_right.png") in SCENES["train"]


def test_no_validation_crop_is_in_train(small):
    train = {image.tobytes() for image in small.train.arrays["image"]}
    shared = [image for image in small.validation["validation"].arrays["image"] if image.tobytes() in train]
    assert all(image.std() == 0 for image in shared)  # a black crop may be like another


def test_validation_covers_the_colours_of_train(small):
    # Channel by channel, nine tenths of train lie in validation's range.
    train, validation = small.train.arrays["image"], small.validation["validation"].arrays["image"]
    low, high = np.percentile(train, [5, 95], axis=(0, 1, 2))
    lowest, highest = np.percentile(validation, [0.5, 99.5], axis=(0, 1, 2))
    assert (lowest <= low + 8).all()
    assert (highest >= high - 8).all()


def test_crops_lie_on_a_regular_grid_as_fine_as_the_cap_allows():
    corners = grid_of_crops(100, 60, 32, most=40)
    lefts, tops = sorted({left for left, _ in corners}), sorted({top for _, top in corners})
    assert corners == [(left, top) for top in tops for left in lefts]
    assert len(corners) <= 40 < len(range(0, 69, lefts[1] - 1)) * len(range(0, 29, lefts[1] - 1))
    assert max(lefts) + 32 <= 100
    assert max(tops) + 32 <= 60
    assert grid_of_crops(40, 40, 32, most=1000)[1] == (4, 0)


def test_the_second_call_reads_what_the_first_prepared(small, data_dir):
    before = sorted(path.stat().st_mtime_ns for path in pathlib.Path(data_dir).rglob("*"))
    again = data.load("photos", size=32, data_dir=data_dir)
    np.testing.assert_array_equal(again.train.arrays["image"], small.train.arrays["image"])
    assert sorted(path.stat().st_mtime_ns for path in pathlib.Path(data_dir).rglob("*")) == before


@pytest.mark.parametrize("size", SIZES)
def test_every_photograph_is_large_enough(size):
    scale = 2 if size == 32 else 1
    assert grid_of_crops(451 // scale, 300 // scale, size, MOST_PIXELS_HIGH // size)


def test_two_processes_may_prepare_at_once_and_in_silence(tmp_path):
    code = f"""
from kvae import data
dataset = data.load("photos", size=256, data_dir={str(tmp_path)!r})
print(dataset.train.arrays["image"].shape, dataset.validation["validation"].arrays["image"].shape)
"""
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert said == ["(555, 256, 256, 3) (63, 256, 256, 3)\n"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert [path.name for path in (tmp_path / "photos" / "256").iterdir()] == ["1.0.0"]


def test_an_unknown_size_names_the_sizes():
    with pytest.raises(InputError, match=r"dataset\.size is 48; the photographs are there at 32, 64, 128, 256 pixels"):
        data.load("photos", size=48)


def test_a_data_dir_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as caught:
        data.load("photos", data_dir=str(tmp_path / "file" / "below"))
    assert str(caught.value) == (
        f"dataset.data_dir: {tmp_path}/file/below cannot be written (Not a directory); choose a folder that can"
    )


def test_damaged_records_are_an_input_error(small, data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    records = next(tmp_path.rglob("*train.array_record*"))
    for copy in tmp_path.rglob("*.npz"):
        copy.write_bytes(copy.read_bytes()[:100_000])  # of no use, and then the records are read
    records.write_bytes(records.read_bytes()[:100_000])
    remedy = "; remove .*/photos/32/1.0.0, and it is prepared anew"
    with pytest.raises(InputError, match=f"{records.name} is damaged: it has 100,000 bytes instead of .*{remedy}"):
        data.load("photos", size=32, data_dir=str(tmp_path))
    (records.parent / "manifest.json").unlink()  # as another program made it
    with pytest.raises(InputError, match=r"photos/32/1\.0\.0 is corrupted .*; remove it, and it is prepared anew"):
        data.load("photos", size=32, data_dir=str(tmp_path))
