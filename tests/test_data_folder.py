"""The data set `folder`: which images it lists, how it splits them, and how it reports unreadable ones."""

import os

import numpy as np
import pytest
from PIL import Image

from image_files import NOISE, save
from kvae import data
from kvae.core.errors import InputError
from kvae.data import ArrayExamples
from kvae.data.pipeline import train_batches
from kvae.data.sets.folder import FolderExamples, folder


def shades(root, names):
    """Saves a grey image under each name, each in a different shade; returns the shade of each name."""
    shade = {name: 2 * i for i, name in enumerate(names)}
    for name, level in shade.items():
        save(root / name, (level,) * 3)
    return shade


def seen(examples):
    """Returns the shade of each example, sorted."""
    return sorted(int(examples[i]["image"][0, 0, 0]) for i in range(len(examples)))


def sides(root, **fields):
    dataset = folder(str(root), size=4, **fields)
    return seen(dataset.train), seen(dataset.validation["validation"])


def test_nested_images_are_listed_and_other_files_ignored(tmp_path):
    shade = shades(tmp_path, ["a.png", "cats/b.PNG", "cats/small/c.bmp", "Ünïcode dir/d e.gif"])
    for name in ("notes.txt", "cats/data.h5", "film.mpg", "plot.eps", "no_suffix", ".hidden.png", ".git/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not an image")
    train, validation = sides(tmp_path)
    assert sorted(train + validation) == sorted(shade.values())


def test_links_are_followed_without_loops(tmp_path):
    shade = shades(tmp_path / "elsewhere", ["a.png", "b.png"])
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    train, validation = sides(root)
    assert sorted(train + validation) == sorted(shade.values())


def test_split_is_disjoint_complete_and_near_fraction(tmp_path):
    shade = shades(tmp_path, [f"{i}.png" for i in range(100)])
    train, validation = sides(tmp_path, validation_fraction=0.3)
    assert sorted(train + validation) == sorted(shade.values())
    assert 20 <= len(validation) <= 40


def test_images_in_run_of_kvae_are_ignored(tmp_path):
    shade = shades(tmp_path, ["a.png", "b.png"])
    save(tmp_path / "runs" / "one" / "figures" / "map.png", (255, 255, 255))
    (tmp_path / "runs" / "one" / "config.json").write_text("{}")
    (tmp_path / "runs" / "one" / "checkpoints").mkdir()
    train, validation = sides(tmp_path)
    assert sorted(train + validation) == sorted(shade.values())


def test_new_images_do_not_move_others(tmp_path):
    shades(tmp_path, [f"{i}.png" for i in range(60)])
    train, validation = sides(tmp_path, validation_fraction=0.3)
    for i in range(40):
        save(tmp_path / f"0new{i}.png", (255, 255, 255))
    more_train, more_validation = sides(tmp_path, validation_fraction=0.3)
    assert train == [level for level in more_train if level != 255]
    assert validation == [level for level in more_validation if level != 255]


@pytest.mark.parametrize("fraction", [1e-6, 1 - 1e-6])
def test_each_split_has_at_least_one_image(tmp_path, fraction):
    shades(tmp_path, ["a.png", "b.png", "c.png"])
    train, validation = sides(tmp_path, validation_fraction=fraction)
    assert sorted([len(train), len(validation)]) == [1, 2]


def test_large_folder_streams_same_examples(tmp_path, monkeypatch):
    shades(tmp_path, [f"{i}.png" for i in range(12)])
    held = folder(str(tmp_path), size=4, validation_fraction=0.3)
    monkeypatch.setattr("kvae.data.dataset.MEMORY_BYTES", 0)
    streamed = folder(str(tmp_path), size=4, validation_fraction=0.3)
    assert isinstance(held.train, ArrayExamples)
    assert isinstance(streamed.train, FolderExamples)
    assert seen(streamed.validation["validation"]) == seen(held.validation["validation"])
    one, other = (train_batches(each.train, seed=0, batch_size=5, first_step=1) for each in (held, streamed))
    for _ in range(4):
        np.testing.assert_array_equal(next(one)["image"], next(other)["image"])


@pytest.fixture
def damaged(tmp_path):
    """A folder with two intact images, a truncated one, an empty one and a page of HTML."""
    shades(tmp_path, ["a.png", "b.png"])
    Image.fromarray(NOISE).save(tmp_path / "truncated.jpg")
    (tmp_path / "truncated.jpg").write_bytes((tmp_path / "truncated.jpg").read_bytes()[:1500])
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    return tmp_path


def test_unreadable_images_are_named(damaged):
    with pytest.raises(InputError) as caught:
        folder(str(damaged))
    assert str(caught.value) == (
        f"{damaged}: 3 unreadable images (empty.png, page.jpg: none of the formats that Pillow reads; truncated.jpg: "
        "image file is truncated (111 bytes not processed)); "
        "replace or remove them, or set dataset.skip_unreadable=True"
    )


def test_one_unreadable_image_is_named_with_reason(damaged):
    (damaged / "empty.png").unlink()
    (damaged / "page.jpg").unlink()
    with pytest.raises(
        InputError, match=r"truncated\.jpg is not a readable image \(.*truncated.*\); replace or remove it"
    ):
        folder(str(damaged))


@pytest.mark.parametrize("memory_bytes", [2**30, 0])
def test_unreadable_images_can_be_skipped(damaged, monkeypatch, caplog, memory_bytes):
    monkeypatch.setattr("kvae.data.dataset.MEMORY_BYTES", memory_bytes)
    monkeypatch.setattr("absl.logging._absl_logger.propagate", True)
    train, validation = sides(damaged, skip_unreadable=True)
    assert sorted(train + validation) == [0, 2]
    assert "skipped 3 of 5 images because they are unreadable (empty.png, page.jpg: none of the formats" in caplog.text


def test_streaming_names_unreadable_image_when_reached(damaged, monkeypatch):
    monkeypatch.setattr("kvae.data.dataset.MEMORY_BYTES", 0)
    dataset = folder(str(damaged))
    with pytest.raises(InputError, match="not a readable image"):
        for examples in (dataset.train, dataset.validation["validation"]):
            next(train_batches(examples, seed=0, batch_size=5, first_step=0))


def test_many_unreadable_images_give_one_line(tmp_path):
    shades(tmp_path, ["a.png", "b.png"])
    for i in range(7):
        (tmp_path / f"x{i}.png").touch()
    with pytest.raises(
        InputError, match=r"7 unreadable images \(x0.png, x1.png, x2.png, x3.png, x4.png: .*; and 2 more\)"
    ):
        folder(str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": ""}, "dataset.path is empty; set it to a folder of images with --config.dataset.path=DIR"),
        ({"path": "{}/none"}, "dataset.path: {}/none does not exist; name a folder of images"),
        ({"path": "{}/a.png"}, "dataset.path: {}/a.png is a file; name a folder of images"),
        ({"path": "{}/none_here"}, "dataset.path: {}/none_here has no images"),
        ({"path": "{}"}, "dataset.path: {} has 1 image; it needs two, one for training and one for validation"),
        ({"path": "{}", "size": 0}, "dataset.size is 0; it must be an integer from 1 to 4096"),
        (
            {"path": "{}", "validation_fraction": 1.0},
            "dataset.validation_fraction is 1.0; it must be a number > 0 and < 1",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, fields, message):
    save(tmp_path / "a.png")
    (tmp_path / "none_here").mkdir()
    with pytest.raises(InputError) as caught:
        data.load("folder", **{**fields, "path": fields["path"].format(tmp_path)})
    assert str(caught.value).startswith(message.format(tmp_path))
    assert "\n" not in str(caught.value)


def test_too_few_readable_images_are_named(damaged):
    (damaged / "a.png").unlink()
    with pytest.raises(InputError, match="has 1 readable image; it needs two"):
        folder(str(damaged), skip_unreadable=True)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "HOME", str(tmp_path))
    shades(tmp_path / "pictures", ["a.png", "b.png"])
    train, validation = sides("~/pictures")
    assert sorted(train + validation) == [0, 2]


def test_log_file_gets_no_progress_bar(tmp_path, capfd):
    shades(tmp_path, ["a.png", "b.png"])
    folder(str(tmp_path), size=8)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("memory_bytes", [2**31, 0], ids=["in memory", "streamed"])
def test_first_subfolder_is_label_if_all_images_have_one(tmp_path, monkeypatch, memory_bytes):
    monkeypatch.setattr("kvae.data.dataset.MEMORY_BYTES", memory_bytes)
    names = [f"{kind}/{more}{i}.png" for kind in ("cats", "dogs") for more in ("", "deeper/") for i in range(6)]
    shade = shades(tmp_path, names)
    kinds = {level: name.partition("/")[0] for name, level in shade.items()}
    dataset = folder(str(tmp_path), size=4, validation_fraction=0.3)
    assert dataset.label_names == ("cats", "dogs")
    for examples in (dataset.train, dataset.validation["validation"]):
        for i in range(len(examples)):
            example = examples[i]
            assert example["label"].dtype == np.int32
            assert dataset.label_names[example["label"]] == kinds[int(example["image"][0, 0, 0])]
    save(tmp_path / "loose.png")
    unlabelled = folder(str(tmp_path), size=4)
    assert unlabelled.label_names == ()
    assert unlabelled.train[0].keys() == {"image"}
