import io
import pickle
import sys
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

import archives
from kvae.core.errors import InputError
from kvae.data.sets import faces

SIZE = 32


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    archives.make_faces(folder)
    faces.faces(SIZE, str(folder))
    return folder


def pixels(examples):
    return {example["image"].tobytes() for example in examples}


def test_training_joins_sets_and_validation_keeps_them_apart(data_dir):
    dataset = faces.faces(SIZE, str(data_dir))
    celeba_hq, afhq = dataset.train.parts
    assert (len(celeba_hq), len(afhq), len(dataset.train)) == (16, 24, 40)
    assert {name: len(examples) for name, examples in dataset.validation.items()} == {"celeba_hq": 4, "afhq": 6}
    np.testing.assert_array_equal(dataset.train[15]["image"], celeba_hq[15]["image"])
    np.testing.assert_array_equal(dataset.train[16]["image"], afhq[0]["image"])
    np.testing.assert_array_equal(dataset.train[39]["image"], afhq[23]["image"])
    for index in (-1, 40):
        with pytest.raises(IndexError):
            dataset.train[index]


def test_images_are_square_and_splits_share_none(data_dir):
    dataset = faces.faces(SIZE, str(data_dir))
    for examples in (dataset.train, *dataset.validation.values()):
        for example in examples:
            assert set(example) == {"image"}
            assert example["image"].shape == (SIZE, SIZE, 3) and example["image"].dtype == np.uint8
    validation = [pixels(examples) for examples in dataset.validation.values()]
    everything = pixels(dataset.train).union(*validation)
    assert len(everything) == 40 + 4 + 6  # no two are equal


def test_image_of_right_size_is_kept_exactly(tmp_path):
    archives.make_faces(tmp_path, images_per_class=4)
    dataset = faces.faces(48, str(tmp_path))
    original = {
        np.asarray(Image.open(io.BytesIO(archives.encoded(s, height=48, width=48)))).tobytes()
        for s in range(20000, 20004)
    }
    assert original <= pixels(dataset.train)


def test_freshly_prepared_examples_survive_pickling(tmp_path):
    archives.make_faces(tmp_path, images_per_class=4)
    train = faces.faces(SIZE, str(tmp_path)).train
    assert pixels(pickle.loads(pickle.dumps(train))) == pixels(train)


def test_celeb_a_hq_without_tensorflow_names_extra(tmp_path, monkeypatch):
    archives.make_zip(tmp_path, "afhq", ("cat", "dog", "wild"), images_per_class=4, first_seed=30000)
    archives.make_celeb_a_hq_tar(tmp_path, SIZE)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(
        InputError, match=r"celeb_a_hq is not prepared .*install TensorFlow: pip install -e '.\[tfds\]'"
    ):
        faces.faces(SIZE, str(tmp_path))


def test_missing_archives_are_named_together(tmp_path):
    start = time.monotonic()
    with pytest.raises(InputError, match=r"lacks celeba_hq.zip \(or data32x32.tar\) and afhq.zip; ") as error:
        faces.faces(SIZE, str(tmp_path))
    assert time.monotonic() - start < 5
    assert str(tmp_path / "downloads" / "manual") in str(error.value) and "\n" not in str(error.value)


def test_nothing_is_prepared_without_all_archives(tmp_path):
    archives.make_faces(tmp_path, images_per_class=4)
    (tmp_path / "downloads" / "manual" / "afhq.zip").unlink()
    with pytest.raises(InputError, match=r"lacks afhq.zip; "):
        faces.faces(SIZE, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["downloads"]


def test_corrupted_member_is_named_and_nothing_left_behind(tmp_path):
    archives.make_faces(tmp_path, images_per_class=4)
    path = tmp_path / "downloads" / "manual" / "celeba_hq.zip"
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("celeba_hq/train/female/020002.jpg")
    data = bytearray(path.read_bytes())
    data[member.header_offset + 300] ^= 255
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"celeba_hq\.zip/celeba_hq/train/female/020002\.jpg is corrupted"):
        faces.faces(SIZE, str(tmp_path))
    assert not list(tmp_path.glob("stargan_celeba_hq/*/1.0.0*"))


@pytest.mark.parametrize("cut", [100, 0])
def test_truncated_zip_is_named(tmp_path, cut):
    archives.make_faces(tmp_path, images_per_class=4)
    path = tmp_path / "downloads" / "manual" / "afhq.zip"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"afhq\.zip is corrupted"):
        faces.faces(SIZE, str(tmp_path))


def test_zip_with_other_folders_is_named(tmp_path):
    archives.make_faces(tmp_path, images_per_class=4)
    archives.make_zip(tmp_path, "afhq", ("lion",), images_per_class=2, first_seed=0)
    with pytest.raises(InputError, match=r"afhq\.zip has no images in train/\{cat,dog,wild\}"):
        faces.faces(SIZE, str(tmp_path))
