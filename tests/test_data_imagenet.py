import concurrent.futures
import io
import pickle
import re
import tarfile
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import archives
from kvae.core.errors import InputError
from kvae.data import records
from kvae.data.sets import imagenet

SIZE = 32


@pytest.fixture(autouse=True)
def several_shards(monkeypatch):
    monkeypatch.setattr(imagenet, "_MEMBERS_PER_SHARD", {"train": 1, "validation": 10})


@pytest.fixture
def data_dir(tmp_path):
    archives.make_imagenet(tmp_path)
    return tmp_path


def archive_path(data_dir, name):
    return archives.manual_folder(data_dir) / name


def files(data_dir):
    folder = data_dir / "kvae_imagenet" / str(SIZE) / "1.0.0"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def resized_picture(seed, height):
    image = Image.fromarray(archives.picture(seed, height, 60))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)).astype(int)


def test_training_images_are_uncropped_and_labelled(data_dir):
    dataset = imagenet.imagenet(SIZE, str(data_dir))
    assert len(dataset.train) == 24 and len(dataset.label_names) == 1000
    for index in range(24):
        c, i = divmod(index, 8)
        example = dataset.train[index]
        assert example["image"].dtype == np.uint8 and example["image"].shape == (SIZE, SIZE, 3)
        assert example["label"].dtype == np.int32
        assert dataset.label_names[example["label"]] == archives.WORDNET_IDS[c]
        expected = resized_picture(100 * c + i, 40 + i)
        if (c, i) == (2, 3):  # the greyscale one
            expected = np.repeat(expected @ [[0.299], [0.587], [0.114]], 3, axis=-1)
        assert np.abs(example["image"] - expected).mean() < 5


def test_validation_labels_are_published_ones(data_dir):
    dataset = imagenet.imagenet(SIZE, str(data_dir))
    validation = dataset.validation["validation"]
    published = (tfds.core.tfds_path("datasets/imagenet2012") / "validation_labels.txt").read_text().split()
    assert [dataset.label_names[example["label"]] for example in validation] == published[:24]
    train = {example["image"].tobytes() for example in dataset.train}
    assert not train & {example["image"].tobytes() for example in validation}


def test_examples_survive_pickling_and_threads(data_dir):
    train = imagenet.imagenet(SIZE, str(data_dir)).train
    expected = [train[i]["image"] for i in range(24)]
    copy = pickle.loads(pickle.dumps(train))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda i: copy[i % 24]["image"], range(96)))
    np.testing.assert_array_equal(images, expected * 4)
    with pytest.raises(IndexError):
        train[24]


def test_interrupted_preparation_resumes_to_same_files(data_dir, tmp_path_factory, monkeypatch):
    resize, done = records.resize_to_jpeg, []

    def interrupted(data, size, name):
        if len(done) == 20:  # in the third of three shards
            raise KeyboardInterrupt
        done.append(name)
        return resize(data, size, name)

    monkeypatch.setattr(records, "resize_to_jpeg", interrupted)
    with pytest.raises(KeyboardInterrupt):
        imagenet.imagenet(SIZE, str(data_dir))
    assert not (data_dir / "kvae_imagenet" / str(SIZE) / "1.0.0").exists()

    done.clear()
    monkeypatch.setattr(
        records, "resize_to_jpeg", lambda data, size, name: done.append(name) or resize(data, size, name)
    )
    imagenet.imagenet(SIZE, str(data_dir))
    assert len(done) == 8 + 24  # the third class and the validation images

    other = tmp_path_factory.mktemp("uninterrupted")
    archives.make_imagenet(other)
    imagenet.imagenet(SIZE, str(other))
    assert files(data_dir) == files(other)
    assert not [name for name in files(data_dir) if name.startswith("incomplete")]


def test_missing_archives_are_named_immediately(tmp_path):
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        imagenet.imagenet(SIZE, str(tmp_path))
    assert time.monotonic() - start < 5
    for part in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", str(tmp_path / "downloads" / "manual")):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["image", "header", "before the end mark"])
def test_truncated_archive_names_member(data_dir, where):
    path = archive_path(data_dir, "ILSVRC2012_img_train.tar")
    with tarfile.open(path) as tar:
        last = tar.getmember("n01484850.tar")
        cut = {
            "image": last.offset_data + 3000,
            "header": last.offset + 100,
            "before the end mark": last.offset_data + last.size + -last.size % 512,
        }[where]
    path.write_bytes(path.read_bytes()[:cut])
    named = "n01443537.tar" if where == "header" else "n01484850.tar"
    with pytest.raises(InputError, match=rf"ILSVRC2012_img_train.tar.*{named}.*download .* again"):
        imagenet.imagenet(SIZE, str(data_dir))
    assert not (data_dir / "kvae_imagenet" / str(SIZE) / "1.0.0").exists()


def test_truncated_class_archive_is_named(data_dir):
    path = archive_path(data_dir, "ILSVRC2012_img_train.tar")
    with tarfile.open(path) as tar:
        inner = tar.extractfile("n01440764.tar").read()
    with tarfile.open(fileobj=io.BytesIO(inner)) as tar:
        fourth = tar.getmembers()[3]
    with tarfile.open(path, "w") as tar:
        archives.add(tar, "n01440764.tar", inner[: fourth.offset_data + 10])
    with pytest.raises(InputError, match=r"n01440764\.tar.*n01440764_103\.JPEG.*truncated"):
        imagenet.imagenet(SIZE, str(data_dir))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"GIF"])
def test_corrupted_image_is_named(data_dir, damage):
    path = archive_path(data_dir, "ILSVRC2012_img_val.tar")
    with tarfile.open(path, "w") as tar:
        archives.add(tar, "ILSVRC2012_val_00000001.JPEG", archives.encoded(1))
        archives.add(tar, "ILSVRC2012_val_00000002.JPEG", damage(archives.encoded(2)))
    with pytest.raises(InputError, match=r"ILSVRC2012_img_val\.tar/ILSVRC2012_val_00000002\.JPEG is not a readable"):
        imagenet.imagenet(SIZE, str(data_dir))


@pytest.mark.parametrize(
    "archive, member", [("ILSVRC2012_img_train.tar", "cats.tar"), ("ILSVRC2012_img_val.tar", "cat.JPEG")]
)
def test_foreign_members_are_named(data_dir, archive, member):
    with tarfile.open(archive_path(data_dir, archive), "w") as tar:
        archives.add(tar, member, archives.encoded(1))
    with pytest.raises(InputError, match=re.escape(f"{archive}/{member} is not")):
        imagenet.imagenet(SIZE, str(data_dir))


def test_empty_archive_is_named(data_dir):
    tarfile.open(archive_path(data_dir, "ILSVRC2012_img_train.tar"), "w").close()
    with pytest.raises(InputError, match=r"ILSVRC2012_img_train\.tar is an empty archive"):
        imagenet.imagenet(SIZE, str(data_dir))


def test_file_that_is_not_tar_is_named(data_dir):
    archive_path(data_dir, "ILSVRC2012_img_train.tar").write_text("<html>log in first</html>")
    with pytest.raises(InputError, match=r"ILSVRC2012_img_train\.tar is not a tar archive"):
        imagenet.imagenet(SIZE, str(data_dir))


def test_unwritable_folder_is_named(data_dir):
    (data_dir / "kvae_imagenet").write_text("in the way")
    with pytest.raises(InputError, match=r"kvae_imagenet/32/1\.0\.0 cannot be prepared: .*Not a directory"):
        imagenet.imagenet(SIZE, str(data_dir))


def test_preparation_resumes_after_full_disk(data_dir, monkeypatch):
    module = "array_record.python.array_record_module.ArrayRecordWriter"

    class FullDisk:
        def __init__(self, *_):
            pass

        def write(self, _):
            raise RuntimeError("write() failed: No space left on device; writing x")

        def close(self):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(module, FullDisk)
        with pytest.raises(InputError, match=r"1\.0\.0 cannot be prepared: .*No space left on device"):
            imagenet.imagenet(SIZE, str(data_dir))
    assert len(imagenet.imagenet(SIZE, str(data_dir)).train) == 24
