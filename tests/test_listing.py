"""Which files of a folder are read as images: links, copies, skipped files, and bit depths."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from image_files import save
from kvae.core.errors import InputError
from kvae.data.images import read_image
from kvae.data.listing import find_copies, list_images, read_images
from kvae.data.sets.folder import folder
from test_data_folder import seen, shades, sides
from test_untrusted import huge_picture


@pytest.fixture(autouse=True)
def logged(caplog, monkeypatch):
    monkeypatch.setattr("absl.logging._absl_logger.propagate", True)
    caplog.set_level("INFO")


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_file_with_two_names_is_one_image(tmp_path, caplog, link):
    shade = shades(tmp_path, [f"{i}.png" for i in range(20)])
    for i in range(20):
        link(tmp_path / f"{i}.png", tmp_path / f"other_{i}.png")
        link(tmp_path / f"{i}.png", tmp_path / f"+{i}.png")
    train, validation = sides(tmp_path, validation_fraction=0.3)
    assert sorted(train + validation) == sorted(shade.values())
    assert "skipped 40 links to images that are listed under another name" in caplog.text


def test_own_name_is_preferred_to_symbolic_link(tmp_path):
    save(tmp_path / "z" / "real.png")
    (tmp_path / "a.png").symlink_to(tmp_path / "z" / "real.png")
    assert list_images(tmp_path) == ["z/real.png"]


def test_copies_are_on_one_side_of_split(tmp_path, caplog):
    shades(tmp_path, [f"{i}.png" for i in range(30)])
    before = sides(tmp_path, validation_fraction=0.3)
    for i in range(30):
        shutil.copy(tmp_path / f"{i}.png", tmp_path / f"x{i}.png")
    train, validation = sides(tmp_path, validation_fraction=0.3)
    assert not {*train} & {*validation}
    assert (sorted({*train}), sorted({*validation})) == before
    assert len(train) + len(validation) == 60
    assert "30 of 60 images are copies of other images" in caplog.text


def test_only_equal_bytes_are_copies(tmp_path):
    one = np.random.default_rng(0).bytes(100_000)
    other = one[:30_000] + bytes(9) + one[30_009:]
    for name, content in (("a", one), ("b", other), ("c", one), ("d", b""), ("e", b"")):
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "f")
    os.mkfifo(tmp_path / "g")
    assert find_copies(tmp_path, [*"abcdefg"]) == {"c": "a", "e": "d"}


def test_single_picture_many_times_can_be_split(tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.png")
    train, validation = sides(tmp_path)
    assert len(train) + len(validation) == 4 and train and validation


def test_files_left_out_are_counted_by_suffix(tmp_path, caplog):
    shades(tmp_path, ["a.png", "b.png"])
    for name in ("1.HEIC", "2.heic", "3.svg", "photo", "notes.txt", "x/4.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path) == ["a.png", "b.png"]
    assert "skipped 3 .heic, 1 without a suffix, 1 .svg, 1 .txt; to read HEIC, pip install pillow-heif" in caplog.text
    assert "add a suffix, such as .jpg, to files without one; render .svg as PNG" in caplog.text
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_folder_without_readable_images_says_what_it_holds(tmp_path):
    (tmp_path / "a.heic").touch()
    with pytest.raises(InputError, match=r"dataset\.path: .* has no images; it has 1 \.heic; to read HEIC, pip"):
        folder(str(tmp_path))


@pytest.mark.parametrize("name", ["@eaDir", "lost+found", ".hidden", "#recycle"])
def test_system_folders_are_not_searched(tmp_path, name):
    shades(tmp_path, ["a.png", f"{name}/b.png"])
    assert list_images(tmp_path) == ["a.png"]


def test_plugin_registered_later_is_seen(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.later")
    assert list_images(tmp_path) == ["a.png"]
    monkeypatch.setitem(Image.EXTENSION, ".later", "PNG")
    assert list_images(tmp_path) == ["a.png", "b.later"]


@pytest.mark.parametrize(
    ("kind", "highest", "message"),
    [
        (np.uint16, 4095, "if their white level is 4095, set dataset.white=4095"),
        (np.uint16, 900, "set dataset.white=1023"),
        (np.float32, 4095, "floating-point images have levels up to 4095, but white is 255"),
        (np.uint16, 40_000, ""),
        (np.float32, 1, ""),
        (np.float32, 255, ""),
    ],
)
def test_depth_that_is_not_white_gives_one_warning(tmp_path, caplog, kind, highest, message):
    for i in range(3):
        Image.fromarray(np.full((8, 8), highest - i % 2, kind)).save(tmp_path / f"{i}.tif")
    folder(str(tmp_path), size=4)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == bool(message) and message in "".join(warnings)
    caplog.clear()
    folder(str(tmp_path), size=4, white=float(highest))
    assert "WARNING" not in caplog.text


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_white_scales_deep_images(tmp_path, kind):
    Image.fromarray(np.full((8, 8), 1024, kind)).save(tmp_path / "a.tif")
    Image.fromarray(np.full((8, 8), 2048, kind)).save(tmp_path / "b.tif")
    dataset = folder(str(tmp_path), size=4, white=4096)
    assert sorted(seen(dataset.train) + seen(dataset.validation["validation"])) == [64, 128]


def test_image_of_200_megapixels_is_refused_with_remedy(tmp_path):
    (tmp_path / "huge.png").write_bytes(huge_picture(14_200))
    with pytest.raises(InputError, match=r"more than 179 million pixels: resize it, or raise .*; replace or"):
        read_image(tmp_path / "huge.png", 8, crop=True)


def test_large_image_gives_no_raw_warning(tmp_path):
    (tmp_path / "large.png").write_bytes(huge_picture(9_800))
    code = "import sys; from kvae.data import images; images.read_image(sys.argv[1], 8, True)"
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "large.png")]
    error = subprocess.run(command, capture_output=True, text=True).stderr
    assert "image file is truncated" in error and "DecompressionBomb" not in error


def test_image_spec_of_images_has_white(tmp_path):
    Image.fromarray(np.full((8, 8), 2048, np.uint16)).save(tmp_path / "a.tif")
    from kvae.data import image_spec

    spec = image_spec({"name": "folder", "size": 8, "white": 4096})
    assert read_images(tmp_path / "a.tif", spec)[0, 0, 0, 0] == 128
