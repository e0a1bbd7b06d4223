"""Untrusted and corrupted files: each gives an image or one line that names it, and starts nothing."""

import json
import os
import pathlib
import re
import shutil
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

import archives
from kvae.core import program
from kvae.core.errors import InputError
from kvae.data.images import pillow_formats
from kvae.data.sets import faces, imagenet
from kvae.data.sets.folder import folder
from kvae.paper import figures as paper
from kvae.report import __main__ as report
from kvae.training.config.sections import validate_config

ROOT = pathlib.Path(__file__).parents[1]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print showpage\n"
IPTC = b"\x1c\x03\x3c\x00\x02\x00\x03\x1c\x03\x41\x00\x01\x00\x1c\x03\x14\x00\x01\x09\x1c\x03\x1e\x00\x01\x09"


def two_images(root: pathlib.Path) -> pathlib.Path:
    root.mkdir(exist_ok=True)
    for name in ("one.png", "two.png"):
        Image.new("RGB", (8, 8), "red" if name == "one.png" else "blue").save(root / name)
    return root


def refusal(call, *arguments, **fields) -> str:
    """Returns the message of the InputError that a call raises."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **fields)
    line = str(caught.value)
    assert line.isprintable(), line
    return line


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.fits"])
def test_no_file_starts_another_program(tmp_path, monkeypatch, name):
    stand_in = tmp_path / "bin" / "gs"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    images = two_images(tmp_path / "images")
    for content in (EPS, IPTC + b"\x1c\x08\x0a\x84\x00\x00\x00\x04" + EPS):
        (images / name).write_bytes(content)
        assert name in refusal(folder, str(images))
    assert not (tmp_path / "started").exists()


def test_images_are_opened_only_in_formats_pillow_decodes_itself():
    assert not {"EPS", "IPTC", "WMF"} & {*pillow_formats()}
    openings = [line for path in (ROOT / "kvae").rglob("*.py") for line in path.read_text().splitlines()]
    openings = [line for line in openings if "Image.open(" in line]
    assert openings
    assert all("formats=" in line for line in openings)


def test_config_of_a_run_cannot_choose_where_figures_go(make_config, tmp_path, capsys):
    run = tmp_path / "runs" / "one" / "hard"
    run.mkdir(parents=True)
    row = {"step": 12, "valid/loss": 1.0, "valid/reconstruction_loss": 1.0, "train/perplexity": 2.0}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    config = json.dumps(validate_config(make_config(evaluate_every_steps=12)))
    for name in ("../../../up", f"{tmp_path}/absolute", "..", "a\\nb", "x" * 300):
        (run / "config.json").write_text(config.replace('"name": "photos"', f'"name": "{name}"'))
        before = {*tmp_path.rglob("*")}
        assert program.run(paper.main, ["--figure=6", str(run), f"--out={tmp_path / 'out'}"]) == 0
        assert all(path.is_relative_to(tmp_path / "out") for path in {*tmp_path.rglob("*")} - before)


def test_pipes_and_devices_are_named_and_never_waited_for(tmp_path):
    images = two_images(tmp_path)
    (images / "folder.png").mkdir()
    os.mkfifo(images / "pipe.png")
    (images / "device.jpg").symlink_to("/dev/zero")
    (images / "nowhere.jpg").symlink_to("none")
    assert (
        "3 unreadable images (device.jpg, pipe.png: it is a folder, a pipe or a device, not a file; nowhere.jpg: "
        in refusal(folder, str(images))
    )
    (images / "device.jpg").unlink()
    (images / "nowhere.jpg").unlink()
    assert "pipe.png is not a readable image (it is a folder, a pipe or a device" in refusal(folder, str(images))
    assert len(folder(str(images), skip_unreadable=True).train) == 1


def test_figures_of_runs_among_images_are_ignored(tmp_path):
    images = two_images(tmp_path)
    run = tmp_path / "runs" / "one"
    two_images(run.parent)
    two_images(run)
    (run / "config.json").write_text("{}")
    (run / "checkpoints").mkdir()
    dataset = folder(str(images))
    assert len(dataset.train) + len(dataset.validation["validation"]) == 4


def test_images_with_unprintable_names_are_read(tmp_path):
    images = two_images(tmp_path)
    odd = [os.fsencode(images) + name for name in (b"/\xff\xfe.png", b"/new\nline.png", b"/\xe2\x80\xa8.png")]
    for name in odd:
        shutil.copy(images / "one.png", name)
    dataset = folder(str(images))
    assert len(dataset.train) + len(dataset.validation["validation"]) == 5
    for name in odd:
        pathlib.Path(os.fsdecode(name)).write_bytes(b"")
    line = refusal(folder, str(images))
    assert "new line.png" in line and "\\udcff\\udcfe.png" in line


def test_error_about_an_unprintable_name_is_printed(tmp_path, capsys):
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)
    assert program.run(report.main, [os.fsdecode(folder)]) == program.MISTAKE
    assert re.fullmatch(r"kvae: .*/\\udcff; .*\n", capsys.readouterr().err)


def huge_picture(side: int) -> bytes:
    """Returns a PNG whose header claims side x side pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10**5, 12_000])
def test_huge_image_is_refused_before_it_is_decoded(tmp_path, side):
    images = two_images(tmp_path)
    (images / "huge.png").write_bytes(huge_picture(side))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        assert "huge.png" in refusal(folder, str(images))


def rewritten(archive: pathlib.Path, method: int, flags: int) -> None:
    """Sets compression method and flags of all members of a zip archive, in both of their headers."""
    content = bytearray(archive.read_bytes())
    for head, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for match in re.finditer(re.escape(head), bytes(content)):
            struct.pack_into("<HH", content, match.start() + offset, flags, method)
    archive.write_bytes(content)


ZIPS = {
    "encrypted": (lambda archive: rewritten(archive, 0, 1), "encrypted"),
    "with an unknown method": (lambda archive: rewritten(archive, 99, 0), "compression"),
    "with a wrong method": (lambda archive: rewritten(archive, 8, 0), "corrupted"),
}


@pytest.mark.parametrize("damage", ZIPS)
def test_unreadable_zip_members_are_named(tmp_path, damage):
    archives.make_faces(tmp_path, images_per_class=4)
    change, message = ZIPS[damage]
    change(tmp_path / "downloads" / "manual" / "afhq.zip")
    line = refusal(faces.faces, 32, str(tmp_path))
    assert "afhq.zip/" in line and message in line


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("afhq/train/cat/020000.jpg", b"", "corrupted"),
        ("afhq/train/cat/twice.png", b"twice", "twice"),
        ("afhq/train/cat/huge.png", huge_picture(10**5), "huge.png is not a readable image"),
        ("afhq/train/cat/" + "x" * 300 + ".png", b"", "not a readable image"),
        ("afhq/train/cat/new\nline.png", b"", "new line.png is not a readable image"),
        ("../../up/train/cat/a.png", b"", "a.png is not a readable image"),
    ],
)
def test_odd_zip_members_are_named_and_not_unpacked(tmp_path, member, content, message):
    archives.make_faces(tmp_path, images_per_class=4)
    with zipfile.ZipFile(tmp_path / "downloads" / "manual" / "afhq.zip", "a") as archive:
        if content == b"twice":
            content = archives.encoded(1)
            archive.writestr(member, content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            archive.writestr(member, content)
    assert message in refusal(faces.faces, 32, str(tmp_path)) or message == "corrupted"
    assert not [*tmp_path.rglob("up")]


def test_truncated_imagenet_archive_is_refused(tmp_path):
    archives.make_imagenet(tmp_path)
    path = tmp_path / "downloads" / "manual" / "ILSVRC2012_img_train.tar"
    archive = path.read_bytes()
    for share in np.linspace(0, 0.6, 5):
        kept = archive[: int(len(archive) * share)]
        for content in (
            kept,
            kept + bytes(len(archive) - len(kept)),
        ):  # some download programs allocate the whole file first
            path.write_bytes(content)
            assert "ILSVRC2012_img_train.tar" in refusal(imagenet.imagenet, 32, str(tmp_path))


DAMAGE = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "random": lambda path: path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size)),
    "a flipped bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    archives.make_faces(folder, images_per_class=4)
    faces.faces(32, str(folder))
    return folder


def all_pixels(data_dir):
    dataset = faces.faces(32, str(data_dir))
    sets = [dataset.train, *dataset.validation.values()]
    return [examples[i]["image"].tobytes() for examples in sets for i in range(len(examples))]


@pytest.mark.parametrize("damage", DAMAGE)
def test_corrupted_file_of_prepared_data_is_named_or_harmless(prepared, tmp_path, damage):
    intact = all_pixels(prepared)
    shutil.copytree(prepared, tmp_path / "data")
    for path in sorted((tmp_path / "data").rglob("*/1.0.0/*")):
        saved = path.read_bytes()
        DAMAGE[damage](path)
        try:
            assert all_pixels(tmp_path / "data") == intact
        except InputError as error:
            assert str(path.parent) in str(error)
            assert "cannot be read" in str(error) or "delete" in str(error), error
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(saved)
    assert all_pixels(tmp_path / "data") == intact
