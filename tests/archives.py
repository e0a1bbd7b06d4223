"""Small archives in the published formats, so that tests run the real preparation.

Each `make_*(data_dir)` fills `<data_dir>/downloads/manual`. tfds accepts the published archives only, so CIFAR-10 and
SVHN are prepared within `with recorded_checksums(data_dir):`; nothing else is replaced.
"""

import contextlib
import io
import pathlib
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from unittest import mock

import numpy as np
from PIL import Image

WORDNET_IDS = ("n01440764", "n01443537", "n01484850")


def manual_folder(data_dir) -> pathlib.Path:
    folder = pathlib.Path(data_dir) / "downloads" / "manual"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def picture(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    """Returns a smooth coloured picture, uint8 [height, width, 3], different for each seed."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return np.asarray(Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC))


def encoded(seed: int, format: str = "JPEG", mode: str = "RGB", height: int = 40, width: int = 60) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(seed, height, width)).convert(mode).save(file, format)
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def make_cifar10(data_dir, images_per_batch: int = 20) -> None:
    """Writes cifar-10-binary.tar.gz: six batches of records, each a label and three planes of pixels."""
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    with tarfile.open(manual_folder(data_dir) / "cifar-10-binary.tar.gz", "w:gz") as tar:
        add(tar, "cifar-10-batches-bin/batches.meta.txt", "\n".join([*names, "", ""]).encode())
        for batch, name in enumerate([f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]):
            seeds = range(batch * images_per_batch, (batch + 1) * images_per_batch)
            records = [bytes([seed % 10]) + picture(seed).transpose(2, 0, 1).tobytes() for seed in seeds]
            add(tar, f"cifar-10-batches-bin/{name}", b"".join(records))


def make_svhn(data_dir, images: int = 24) -> None:
    """Writes {train,test,extra}_32x32.mat: X [32, 32, 3, n], y [n, 1] with 10 for the digit 0."""
    import scipy.io

    for part, name in enumerate(("train", "test", "extra")):
        seeds = range(1000 + part * images, 1000 + (part + 1) * images)
        pixels = np.stack([picture(seed) for seed in seeds], axis=-1)
        digits = np.array([[seed % 10 or 10] for seed in seeds], np.uint8)
        scipy.io.savemat(manual_folder(data_dir) / f"{name}_32x32.mat", {"X": pixels, "y": digits})


def make_imagenet(data_dir, images_per_class: int = 8) -> None:
    """Writes ILSVRC2012_img_{train,val}.tar, with the three odd kinds of image that the real archives contain."""
    odd = {(0, 1): {"mode": "CMYK"}, (1, 2): {"format": "PNG", "mode": "RGBA"}, (2, 3): {"mode": "L"}}
    with tarfile.open(manual_folder(data_dir) / "ILSVRC2012_img_train.tar", "w") as tar:
        for c, wordnet_id in enumerate(WORDNET_IDS):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as class_tar:
                for i in range(images_per_class):
                    data = encoded(100 * c + i, **odd.get((c, i), {}), height=40 + i)
                    add(class_tar, f"{wordnet_id}_{100 + i}.JPEG", data)
            add(tar, f"{wordnet_id}.tar", inner.getvalue())
    with tarfile.open(manual_folder(data_dir) / "ILSVRC2012_img_val.tar", "w") as tar:
        for number in range(1, 3 * images_per_class + 1):
            add(tar, f"ILSVRC2012_val_{number:08d}.JPEG", encoded(5000 + number))


def make_zip(data_dir, name: str, classes, images_per_class: int, first_seed: int) -> None:
    seed = first_seed
    with zipfile.ZipFile(manual_folder(data_dir) / f"{name}.zip", "w") as archive:
        for folder, count in (("train", images_per_class), ("val", max(1, images_per_class // 4))):
            archive.mkdir(f"{name}/{folder}")
            for label in classes:
                for _ in range(count):
                    archive.writestr(f"{name}/{folder}/{label}/{seed:06d}.jpg", encoded(seed, height=48, width=48))
                    seed += 1


def make_faces(data_dir, images_per_class: int = 8) -> None:
    """Writes celeba_hq.zip and afhq.zip of StarGAN v2."""
    make_zip(data_dir, "celeba_hq", ("female", "male"), images_per_class, first_seed=20000)
    make_zip(data_dir, "afhq", ("cat", "dog", "wild"), images_per_class, first_seed=30000)


def make_celeb_a_hq_tar(data_dir, size: int, images: int = 30) -> None:
    """Writes data<size>x<size>.tar, from which tfds prepares celeb_a_hq/<size>."""
    with tarfile.open(manual_folder(data_dir) / f"data{size}x{size}.tar", "w") as tar:
        for i in range(images):
            add(tar, f"{i:05d}.png", encoded(40000 + i, format="PNG", height=size, width=size))


@contextlib.contextmanager
def recorded_checksums(data_dir):
    """Makes tfds accept the archives in the manual folder within the block."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums

    manual = manual_folder(data_dir)
    with contextlib.ExitStack() as stack:
        for name in ("cifar10", "svhn_cropped"):
            recorded = tfds.builder_cls(name).url_infos
            paths = {url: manual / info.filename for url, info in recorded.items()}
            ours = {url: checksums.compute_url_info(path) for url, path in paths.items() if path.exists()}
            stack.enter_context(mock.patch.dict(recorded, ours))
        yield


def run_without_tensorflow(program: str, *arguments) -> str:
    """Runs a Python program in a process where TensorFlow is not importable; returns its output."""
    without = """
import sys
from importlib.machinery import PathFinder
class WithoutTensorFlow(PathFinder):
    @classmethod
    def find_spec(cls, name, *arguments):
        return None if name.partition(".")[0] == "tensorflow" else super().find_spec(name, *arguments)
sys.meta_path[:] = [WithoutTensorFlow if finder is PathFinder else finder for finder in sys.meta_path]
"""
    command = [sys.executable, "-c", without + textwrap.dedent(program), *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout
