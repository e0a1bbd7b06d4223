"""Runs of version 0.1: each archive is one, trained for two steps, with what its own `kvae.load` gave."""

import pathlib
import zipfile

import numpy as np
import pytest

import kvae
from kvae import main
from kvae.core import program

ARCHIVES = pathlib.Path(__file__).parent / "version_0_1"


@pytest.fixture
def opened(tmp_path):
    """`opened(name)`: the folder of a run."""

    def unpack(name):
        with zipfile.ZipFile(ARCHIVES / f"{name}.zip") as archive:
            archive.extractall(tmp_path)
        return tmp_path / name

    return unpack


@pytest.mark.parametrize(("name", "replica"), [("vqvae", 0), ("vqvae", 1), ("vqvae2", 0)])
def test_an_autoencoder_gives_the_same_codes_codewords_and_images(opened, name, replica):
    folder = opened(name)
    run = kvae.load(str(folder), replica=replica)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    found = {f"codes/{codebook}": codes for codebook, codes in run.encode(images).items()}
    found |= {f"codebooks/{codebook}": codewords for codebook, codewords in run.codebooks.items()}
    found["decoded"] = run.decode(run.encode(images))
    with np.load(folder / f"expected_{replica}.npz") as expected:
        assert found.keys() == set(expected)
        for key, values in found.items():
            np.testing.assert_allclose(values.astype(float), expected[key], atol=1 if key == "decoded" else 0)


def test_a_map_at_the_end_of_a_network_has_the_same_winners(opened):
    folder = opened("digits")
    images = np.random.default_rng(0)
    images.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)  # drawn for the autoencoders
    images = np.tile(images.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8), (1, 4, 4, 1))
    with np.load(folder / "expected_0.npz") as expected:
        np.testing.assert_array_equal(kvae.load(str(folder)).winners(images), expected["winners"])


def test_it_cannot_go_on_and_is_kept(opened, capsys):
    folder = opened("vqvae")
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    config = pathlib.Path(__file__).parents[1] / "configs" / "photos_vqvae.py"
    assert program.run(main.main, [f"--config={config}:smoke", f"--workdir={folder}"]) == program.MISTAKE
    assert "is a run of kvae 0.1: kvae.load opens it, but it cannot go on" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
