import http.server
import os
import sys
import threading
import time

import numpy as np
import pytest

import archives
from kvae import data
from kvae.core.errors import InputError
from kvae.data import records
from kvae.data.sets import standard


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("standard")
    archives.make_cifar10(folder)
    archives.make_svhn(folder)
    with archives.recorded_checksums(folder):
        standard.cifar10(str(folder))
        standard.svhn(str(folder))
    return str(folder)


@pytest.fixture
def no_network(monkeypatch):
    """A DNS resolver that does not answer: the slowest kind of missing network."""
    monkeypatch.setattr(standard, "TIMEOUT_SECONDS", 0.3)
    released = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: released.wait(60) and [])
    yield
    released.set()


def contents(examples):
    return {
        (image.tobytes(), int(label))
        for image, label in zip(examples.arrays["image"], examples.arrays["label"], strict=True)
    }


def made(seeds):
    return {(archives.picture(seed).tobytes(), seed % 10) for seed in seeds}


def test_cifar10_has_pixels_and_labels_of_archive(data_dir):
    dataset = standard.cifar10(data_dir, "train", "test")
    assert contents(dataset.train) == made(range(100))
    assert contents(dataset.validation["validation"]) == made(range(100, 120))
    assert dataset.label_names[:3] == ("airplane", "automobile", "bird")
    assert dataset.train.arrays["image"].dtype == np.uint8 and dataset.train.arrays["label"].dtype == np.int32


def test_cifar10_holds_out_a_fifth_of_train(data_dir):
    dataset = standard.cifar10(data_dir)
    train, validation = contents(dataset.train), contents(dataset.validation["validation"])
    assert (len(train), len(validation)) == (80, 20)
    assert train | validation == made(range(100))


def test_svhn_has_pixels_of_files_and_ten_means_zero(data_dir):
    dataset = standard.svhn(data_dir)
    assert contents(dataset.train) == made(range(1000, 1024))
    assert contents(dataset.validation["validation"]) == made(range(1024, 1048))


def test_decoded_copy_is_read_back_but_optional(data_dir, monkeypatch):
    first = contents(standard.svhn(data_dir, "extra").train)
    assert first == made(range(1048, 1072))
    with monkeypatch.context() as patch:
        patch.setattr(records, "decode_image", None)  # no longer needed
        assert contents(standard.svhn(data_dir, "extra", "extra").train) == first

    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr("kvae.data.records.replaced", refuse)
    assert len(standard.svhn(data_dir, "extra[:3]").train) == 3
    assert len(standard.svhn(data_dir, "extra[:3]").train) == 3


def test_splits_can_be_joined(data_dir):
    assert contents(standard.svhn(data_dir, train_split="train+test").train) == made(range(1000, 1048))


@pytest.mark.parametrize("split", ["valid", "train[:0]", "train[", ""])
def test_split_without_examples_is_named(data_dir, split):
    with pytest.raises(InputError, match=r"cifar10: .*'train': 100"):
        standard.cifar10(data_dir, train_split=split)


def test_default_folder_is_default_of_tfds(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
    assert len(standard.cifar10().train) == 80


def test_tfds_celeb_a_hq_holds_out_last_fifteenth(tmp_path):
    archives.make_zip(tmp_path, "afhq", ("cat", "dog", "wild"), images_per_class=4, first_seed=30000)
    archives.make_celeb_a_hq_tar(tmp_path, 32, images=30)
    dataset = data.load("faces", size=32, data_dir=str(tmp_path))
    train, validation = dataset.train.parts[0], dataset.validation["celeba_hq"]
    assert (len(train), len(validation)) == (28, 2)
    expected = {archives.picture(40000 + i, 32, 32).tobytes() for i in range(30)}
    assert {example["image"].tobytes() for part in (train, validation) for example in part} == expected


def test_prepared_data_need_no_tensorflow(data_dir):
    archives.make_faces(data_dir, images_per_class=4)
    archives.make_imagenet(data_dir)
    program = """
        import sys
        import tensorflow_datasets as tfds
        from kvae import data
        counts = [len(data.load(name, data_dir=sys.argv[1]).train) for name in ("cifar10", "svhn")]
        for name in ("faces", "faces", "imagenet", "imagenet"):  # prepares, then reads
            train = data.load(name, size=32, data_dir=sys.argv[1]).train
            counts.append(len(train))
        source = tfds.builder("kvae_imagenet/32", data_dir=sys.argv[1]).as_data_source("train")
        assert (train[5]["image"] == source[5]["image"]).all()
        print(*counts, source[5]["file_name"])"""
    printed = archives.run_without_tensorflow(program, data_dir)
    assert printed.splitlines()[-1] == "80 24 20 20 24 24 b'n01440764_105.JPEG'"


def test_missing_tensorflow_names_extra(tmp_path, monkeypatch):
    archives.make_cifar10(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(InputError, match=r"install TensorFlow: pip install -e '.\[tfds\]'"):
        standard.cifar10(str(tmp_path))


@pytest.mark.parametrize(
    "read, archive", [(standard.cifar10, "cifar-10-binary.tar.gz"), (standard.svhn, "train_32x32.mat")]
)
def test_missing_archive_and_network_are_named_immediately(tmp_path, no_network, read, archive):
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        read(str(tmp_path))
    assert time.monotonic() - start < 5
    assert os.path.join(tmp_path, "downloads", "manual", archive) in str(error.value)
    assert "\n" not in str(error.value)


def test_only_server_with_the_file_answers(tmp_path, monkeypatch):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path)

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "there.mat").write_bytes(b"x")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert standard._answers(f"{address}/there.mat")
        assert not standard._answers(f"{address}/elsewhere.mat")
        server.shutdown()


def test_unpublished_archive_is_refused(tmp_path):
    archives.make_cifar10(tmp_path)
    with pytest.raises(InputError, match=r"cifar10.*cifar-10-binary\.tar\.gz, has wrong checksum; download") as error:
        standard.cifar10(str(tmp_path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cifar10").exists() or not list((tmp_path / "cifar10").iterdir())


def test_tfrecord_is_refused_with_remedy(tmp_path):
    import tensorflow_datasets as tfds

    archives.make_cifar10(tmp_path, images_per_batch=2)
    with archives.recorded_checksums(tmp_path):
        tfds.builder("cifar10", data_dir=tmp_path).download_and_prepare(file_format="tfrecord")
    with pytest.raises(InputError, match="tfrecord files, which do not support random access; delete that folder"):
        standard.cifar10(str(tmp_path))
